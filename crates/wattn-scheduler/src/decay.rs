//! How fast linear attention forgets.

/// The decay of linear attention: each token multiplies the state by `exp(-slope)`, or by `exp(g)` with a `g` of its own.
#[derive(Debug, Clone, PartialEq)]
pub enum Decay {
    /// Nothing is forgotten: all slopes are 0.
    None,
    /// One slope a head, at least 0; 0 never forgets.
    Slopes(Vec<f32>),
    /// The slopes of one of a model's layers.
    Layer {
        /// Who published them.
        model: DecayModel,
        /// The layer, from 0.
        layer: u32,
        /// All layers, those of softmax attention included.
        layers: u32,
    },
    /// A log decay a token, at most 0, given at each call: `RetNet`, Mamba-2's SSD, simple GLA.
    Gates,
}

/// Published slopes. The base of head `h` of `H` is `2^(-8 (h + 1) / H)`; layers scale it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DecayModel {
    /// `TransNormerLLM`, the original MiniMax-01 and vLLM: factor `1 - layer / (layers - 1) + 1e-5`; where the number of heads is no
    /// power of two, the heads beyond it take every other slope of the next one, as ALiBi does.
    TransNormer,
    /// The `MiniMax` of Hugging Face's transformers: factor `1 - layer / (layers - 1 + 1e-5) + 1e-5`, the base for any number of heads.
    MiniMax,
}

impl Decay {
    /// Any slopes, one a head.
    #[must_use]
    pub fn slopes(slopes: &[f32]) -> Self {
        Self::Slopes(slopes.to_vec())
    }

    /// The slopes of `TransNormerLLM`'s layer `layer` of `layers` (arXiv 2405.17381); see [`DecayModel::TransNormer`].
    #[must_use]
    pub fn transnormer(layer: u32, layers: u32) -> Self {
        Self::Layer { model: DecayModel::TransNormer, layer, layers }
    }

    /// The slopes of `MiniMax`'s layer `layer` of `layers`; see [`DecayModel::MiniMax`].
    #[must_use]
    pub fn minimax(layer: u32, layers: u32) -> Self {
        Self::Layer { model: DecayModel::MiniMax, layer, layers }
    }

    /// The slopes for this many heads; none where tokens bring their own decay.
    ///
    /// ```
    /// let slopes = wattn_scheduler::Decay::transnormer(0, 12).for_heads(8);
    /// assert!((slopes[0] - 0.5 * 1.00001).abs() < 1e-6);
    /// ```
    #[must_use]
    pub fn for_heads(&self, heads: u32) -> Vec<f32> {
        match self {
            Self::Gates => Vec::new(),
            Self::None => vec![0.0; heads as usize],
            Self::Slopes(slopes) => slopes.clone(),
            &Self::Layer { model, layer, layers } => {
                let (layer, last) = (f64::from(layer), f64::from(layers.max(1) - 1));
                let factor = match model {
                    DecayModel::TransNormer if layers <= 1 => 1.0 + 1e-5,
                    DecayModel::TransNormer => 1.0 - layer / last + 1e-5,
                    DecayModel::MiniMax => 1.0 - layer / (last + 1e-5) + 1e-5,
                };
                let base = match model {
                    DecayModel::TransNormer => interleaved(heads),
                    DecayModel::MiniMax => geometric(heads),
                };
                #[expect(clippy::cast_possible_truncation, reason = "slopes are f32 on devices")]
                base.into_iter().map(|slope| (slope * factor) as f32).collect()
            }
        }
    }
}

/// `2^(-8 (h + 1) / heads)`.
fn geometric(heads: u32) -> Vec<f64> {
    (1..=heads).map(|h| (-8.0 * f64::from(h) / f64::from(heads)).exp2()).collect()
}

/// The same for a power of two; other numbers of heads go on with every other slope of twice the power below.
fn interleaved(heads: u32) -> Vec<f64> {
    if heads == 0 || heads.is_power_of_two() {
        return geometric(heads);
    }
    let below = 1 << heads.ilog2();
    let between = geometric(2 * below).into_iter().step_by(2);
    geometric(below).into_iter().chain(between).take(heads as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_slopes() {
        let near = |got: f32, want: f64| assert!((f64::from(got) - want).abs() < 1e-6, "{got} instead of {want}");
        let first = |layer| Decay::transnormer(layer, 12).for_heads(8)[0];
        for (layer, factor) in [(0, 1.00001), (5, 0.545_464_55), (11, 1e-5)] {
            near(first(layer), 0.5 * factor);
        }
        near(Decay::transnormer(0, 1).for_heads(8)[7], 0.003_906_25 * 1.00001);
        let six = Decay::transnormer(0, 1).for_heads(6);
        for (got, want) in six.into_iter().zip([0.25, 0.0625, 0.015_625, 0.003_906_25, 0.5, 0.125]) {
            near(got, want * 1.00001);
        }
        near(Decay::minimax(0, 2).for_heads(6)[0], (-8.0_f64 / 6.0).exp2() * 1.00001);
        near(Decay::minimax(1, 2).for_heads(6)[0], (-8.0_f64 / 6.0).exp2() * 2e-5);
    }
}

//! Seeded values.

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// A stream of random values that only its name decides, so that a new case never changes the others.
pub(crate) struct Source(Pcg64Mcg);

impl Source {
    /// The seed is the FNV-1a hash of the name.
    pub(crate) fn named(name: &str) -> Self {
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        Self(Pcg64Mcg::seed_from_u64(hash))
    }

    /// From the normal distribution, mean 0 and variance 1 (Box-Muller).
    pub(crate) fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.0.random::<f64>()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.0.random::<f64>()).cos()) as f32
    }

    /// Normal values.
    pub(crate) fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }

    /// `true` with this probability.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.0.random_bool(probability)
    }
}

/// `2^(-8 (h + 1) / heads)`, the published slopes for a power of two.
pub(crate) fn alibi_slopes(heads: usize) -> Vec<f32> {
    (0..heads).map(|h| (-8.0 * (h + 1) as f64 / heads as f64).exp2() as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_values_have_mean_0_and_variance_1() {
        let values = Source::named("x").normals(100_000);
        let mean = values.iter().sum::<f32>() / 1e5;
        let variance = values.iter().map(|x| x * x).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        assert_eq!(values, Source::named("x").normals(100_000));
        assert_ne!(values, Source::named("y").normals(100_000));
    }
}

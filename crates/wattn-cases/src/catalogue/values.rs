//! Inputs that are hard on the arithmetic. Where all logits are exact in f32, so must be the result, whatever their
//! size: those problems state the plain tolerance.

use super::BOTTOM_RIGHT;
use crate::{Bias, Recipe, Spread, Values};

const EXACT: Option<f64> = Some(5e-6);

fn holding(name: &'static str, values: Values) -> Recipe {
    Recipe { name, values, queries: 33, keys: 70, ..Recipe::default() }
}

pub(super) fn recipes() -> Vec<Recipe> {
    vec![
        holding("softmax/constant", Values::Constant),
        holding("softmax/one_hot", Values::OneHot(8.0)),
        Recipe { rms_tolerance: EXACT, ..holding("softmax/logits_1e5_exact", Values::OneHot(800_000.0)) },
        Recipe { causal: BOTTOM_RIGHT, ..holding("softmax/logits_100", Values::Large(100.0)) },
        holding("softmax/logits_1e5", Values::Large(3e4)),
        Recipe {
            scale: Some(-1e9),
            rms_tolerance: EXACT,
            ..holding("softmax/logits_below_1e9_scale", Values::Constant)
        },
        Recipe {
            bias: Some((Bias::Below, Spread::Shared)),
            rms_tolerance: EXACT,
            ..holding("softmax/logits_below_1e9_bias", Values::Constant)
        },
    ]
}

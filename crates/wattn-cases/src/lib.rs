//! Attention problems with what must come out of them: the catalogue of named, seeded problems, case files, and the
//! rules by which a result is judged. Tests, benches and xtask all draw from here.
//!
//! ```
//! use wattn_cases::{Rows, catalogue, compare};
//!
//! let recipe = &catalogue()[0];
//! let case = recipe.build();
//! let reference = case.reference(Rows::All);
//! let got = vec![0.0; case.out_shape().iter().product()]; // what a device calculated
//! let comparison = compare("out", &got, &reference.out, &case.rules("out", &reference));
//! assert!(!comparison.pass, "zeros are not the result of {}", case.name);
//! ```

#![forbid(unsafe_code)]

mod based;
mod case;
mod catalogue;
mod check;
mod file;
mod inputs;
mod layout;
mod linear;
mod recipe;
mod reference;
mod tensor;
mod tolerance;
mod write;

pub use based::{BasedCase, BasedRecipe};
pub use case::{Dims, Mask, SoftmaxCase};
pub use catalogue::{
    based_bench_catalogue, based_catalogue, bench_catalogue, catalogue, decode_bench_catalogue, decode_catalogue,
    linear_bench_catalogue, linear_catalogue,
};
pub use file::{Case, CaseFile};
pub use layout::Layout;
pub use linear::{Decay, Decays, LinearCase, LinearDims, LinearRecipe};
pub use recipe::{Bias, Recipe, Spread, Values};
pub use reference::{Reference, References, Rows};
pub use tensor::{Storage, Tensor};
pub use tolerance::{Comparison, Rules, compare};
pub use wattn_oracle::Causal;
pub use write::write;

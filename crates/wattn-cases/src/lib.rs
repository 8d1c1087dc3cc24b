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

mod case;
mod catalogue;
mod check;
mod file;
mod inputs;
mod recipe;
mod reference;
mod tensor;
mod tolerance;
mod write;

pub use case::{Dims, Layout, Mask, SoftmaxCase};
pub use catalogue::{bench_catalogue, catalogue};
pub use file::CaseFile;
pub use recipe::{Bias, Recipe, Spread, Values};
pub use reference::{Reference, Rows};
pub use tensor::{Storage, Tensor};
pub use tolerance::{Comparison, Rules, compare};
pub use wattn_oracle::Causal;
pub use write::write;

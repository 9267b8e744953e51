//! Which program makes its processes one tree: servers and trainers with workers, by their command lines. The topmost process
//! that a rule fits is the root, whatever started it: a shell, a supervisor. What it starts is part of it, also where a rule fits
//! that: an entry point's gunicorn, a trainer's torchrun. Roots that no program makes have a rule where a container or a systemd
//! unit begins with them.

use super::container::{self, Container};
use crate::{constant::Name, pattern};

/// Servers and trainers that are known by the name of their program, script or module.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("gunicorn", &["gunicorn", "gunicorn.app.wsgiapp"]),
    ("uvicorn", &["uvicorn"]),
    ("celery", &["celery"]),
    ("postgres", &["postgres", "postmaster"]),
    ("nginx", &["nginx"]),
    ("torchrun", &["torchrun", "torch.distributed.run", "torch.distributed.launch"]),
];
/// The rule of an entry point that the configuration names.
const ENTRY_POINT: &str = "entry_point";
/// The rule of a container's first process.
const CONTAINER: &str = "container";
/// The rule of a systemd unit's main process.
const UNIT: &str = "unit";

/// The rule that a process fits by what it runs, if any. `command_line` has its arguments joined by spaces; servers may have
/// rewritten it, as in `nginx: master process …`.
pub(super) fn of(command_line: &str, entry_points: &[String]) -> Option<Name> {
    // Kernel threads have none.
    if command_line.is_empty() {
        return None;
    }
    if entry_points.iter().any(|entry| fits_entry(command_line, entry)) {
        return Some(ENTRY_POINT);
    }
    let program = program(command_line)?;
    PROGRAMS.iter().find(|(_, programs)| programs.contains(&program)).map(|(rule, _)| *rule)
}

/// Something that begins with a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place<'a> {
    /// A container, by its id.
    Container(&'a str),
    /// A systemd unit, by the path of its cgroup.
    Unit(&'a str),
}

impl<'a> Place<'a> {
    /// The innermost place that a cgroup belongs to.
    pub(super) fn of(container: Option<&'a Container>, cgroup_path: Option<&'a str>) -> Option<Self> {
        match container {
            Some(container) => Some(Self::Container(&container.id)),
            None => container::unit_path(cgroup_path?).map(Self::Unit),
        }
    }

    /// The rule of the tree that it begins with.
    pub(super) const fn rule(self) -> Name {
        match self {
            Self::Container(_) => CONTAINER,
            Self::Unit(_) => UNIT,
        }
    }
}

/// Whether a rule comes from what a process runs, rather than from a place that begins with it.
pub(super) fn is_of_program(rule: Option<Name>) -> bool {
    rule.is_some_and(|rule| rule != CONTAINER && rule != UNIT)
}

/// An entry point with `*` or `?` is a pattern for the whole command line. One without is searched for in it: as part of a module's
/// name or a path, as in `python -m package.entry_point`, or as whole words, of which the first may end a path.
fn fits_entry(command_line: &str, entry: &str) -> bool {
    if entry.contains(['*', '?']) {
        return pattern::fits(command_line, entry);
    }
    let (is_part, length) = (entry.contains(['.', '/']), entry.len());
    command_line.match_indices(entry).any(|(at, _)| {
        let begins = command_line[..at].is_empty() || command_line[..at].ends_with([' ', '/']);
        let ends = command_line[at + length..].is_empty() || command_line[at + length..].starts_with(' ');
        is_part || begins && ends
    })
}

/// What runs: the program, or what an interpreter was given to run.
fn program(command_line: &str) -> Option<&str> {
    let mut arguments = command_line.split(' ');
    let first = base_name(arguments.next()?.trim_end_matches(':'));
    if !first.starts_with("python") && !first.starts_with("pypy") {
        return Some(first);
    }
    while let Some(argument) = arguments.next() {
        match argument {
            "-m" => return arguments.next(),
            // These take a value.
            "-W" | "-X" => drop(arguments.next()),
            _ if argument.starts_with('-') => {}
            script => return Some(base_name(script)),
        }
    }
    None
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_trainers_are_known_by_program_script_or_module() {
        for (command_line, rule) in [
            ("/usr/bin/python3 /usr/local/bin/gunicorn -k uvicorn.workers.UvicornWorker app:app", Some("gunicorn")),
            ("gunicorn: master [app:app]", Some("gunicorn")),
            ("python3 -X dev -m uvicorn app:app --workers 2", Some("uvicorn")),
            ("/usr/bin/python3 -u -m celery -A app worker", Some("celery")),
            ("/usr/lib/postgresql/15/bin/postgres -D /data", Some("postgres")),
            ("postgres: checkpointer", Some("postgres")),
            ("nginx: worker process", Some("nginx")),
            ("python -m torch.distributed.run --nproc-per-node 4 train.py", Some("torchrun")),
            ("python3 train.py --server uvicorn", None),
            ("python3", None),
            ("/usr/bin/python3 -c import uvicorn", None),
            ("bash -c gunicorn app:app", None),
            ("", None),
        ] {
            assert_eq!(of(command_line, &[]), rule, "{command_line}");
        }
    }

    #[test]
    fn entry_points_are_those_configured() {
        for (entry, command_line, fits) in [
            ("package.server.entry_point", "python3 -m package.server.entry_point --port 1", true),
            ("server.entry", "python3 -m package.server.entry_point --port 1", true),
            ("apps/train", "python3 /opt/apps/train.py", true),
            ("serve", "python3 /opt/bin/serve --port 1", true),
            ("serve", "serve", true),
            ("serve", "python3 /opt/bin/preserve serve.py", false),
            ("serve --port", "python3 /opt/bin/serve --port 1", true),
            ("serve --po", "python3 /opt/bin/serve --port 1", false),
            ("*train.py*", "python3 /opt/train.py --epochs 3", true),
            ("*train.py", "python3 /opt/train.py --epochs 3", false),
            ("train.py*", "python3 /opt/train.py --epochs 3", false),
            ("python? *--epochs ?", "python3 /opt/train.py --epochs 3", true),
            ("python? *--epochs ?", "python3 /opt/train.py --epochs 30", false),
            ("*a*b*c", "xaxbxbxc", true),
            ("*a*b*c", "xaxcxcxb", false),
            ("*", "anything", true),
            ("*", "", false),
            ("?", "é", true),
            ("java * -jar *-server-*.jar", "java -Xmx1g -jar /srv/x-server-1.2.jar", true),
        ] {
            let told = of(command_line, &[entry.to_owned()]);
            assert_eq!(told, fits.then_some(ENTRY_POINT), "{entry} in {command_line}");
        }
        // What is configured goes before what is known.
        assert_eq!(of("gunicorn app:app", &["gunicorn*".to_owned()]), Some(ENTRY_POINT));
    }

    #[test]
    fn places_are_containers_and_units() {
        let container = Container { id: "c1".into(), ..Container::default() };
        let place = |container, path| Place::of(container, path);
        let path = "/system.slice/docker-c1.scope";
        assert_eq!(place(Some(&container), Some(path)), Some(Place::Container("c1")));
        assert_eq!(place(None, Some("/system.slice/x.service/inner")), Some(Place::Unit("/system.slice/x.service")));
        assert_eq!((place(None, Some("/user.slice")), place(None, None)), (None, None));
        assert_eq!((Place::Container("c1").rule(), Place::Unit("/x").rule()), ("container", "unit"));
        assert!(is_of_program(Some("nginx")) && !is_of_program(Some(CONTAINER)) && !is_of_program(None));
    }
}

//! Which program makes its processes one tree: servers and trainers with workers, by their command lines. The topmost process
//! that a rule fits is the root, whatever started it: a shell, a supervisor, another server.

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

/// The rule that a process fits, if any. `command_line` has its arguments joined by spaces; servers may have rewritten it, as in
/// `nginx: master process …`.
pub(super) fn of(command_line: &str, entry_points: &[String]) -> Option<&'static str> {
    let names = |entry: &String| command_line.split(' ').any(|argument| fits_entry(argument, entry));
    if entry_points.iter().any(names) {
        return Some(ENTRY_POINT);
    }
    let program = program(command_line)?;
    PROGRAMS.iter().find(|(_, programs)| programs.contains(&program)).map(|(rule, _)| *rule)
}

/// An entry point is a module or part of a path, as in `python -m package.entry_point`, or the last of one.
fn fits_entry(argument: &str, entry: &str) -> bool {
    argument == entry || base_name(argument) == entry || entry.contains(['.', '/']) && argument.contains(entry)
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
        let entries = ["package.server.entry_point".to_owned(), "serve".to_owned()];
        let is_entry = |command_line| of(command_line, &entries) == Some(ENTRY_POINT);
        assert!(is_entry("python3 -m package.server.entry_point --port 1"));
        assert!(is_entry("python3 /opt/bin/serve --port 1"));
        assert!(!is_entry("python3 /opt/bin/preserve serve.py"));
    }
}

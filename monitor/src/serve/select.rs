//! Which items of a list, in which order, how many: the query's side of a list answer.

use super::{
    cells::{self, Cell},
    fields::{Field, Number},
    problem::Problem,
    view::{Context, Listed},
};
use crate::{
    advise::policy::Policy,
    ids::Tgid,
    model::{
        container::{Container, SHORT_ID},
        snapshot::{BlockDevice, Cgroup, Process, Snapshot, Tree},
    },
};
use std::str::FromStr;

/// Items listed where the query does not say.
const DEFAULT_LIMIT: usize = 1000;
/// The most it may say.
const MAX_LIMIT: usize = 100_000;

/// A query's parameters, decoded, in their order.
pub(super) type Parameters = [(String, String)];

/// A kind of item that a query can choose from.
pub(super) trait Selected: Listed {
    /// The parameters that choose items, besides `sort` and `limit`.
    const FILTERS: &'static [&'static str] = &[];

    /// The test that one of [`Self::FILTERS`] asks for.
    fn filter(_name: &str, _value: &str) -> Result<Option<Test<Self>>, Problem> {
        Ok(None)
    }
}

/// Whether an item is asked for.
pub(super) type Test<T> = Box<dyn Fn(&T) -> bool + Send>;

impl Selected for Process {
    const FILTERS: &'static [&'static str] = &["pid", "tree", "cgroup", "container"];

    fn filter(name: &str, value: &str) -> Result<Option<Test<Self>>, Problem> {
        Ok(match name {
            "pid" => {
                let pid = Tgid(number(name, value)?);
                Some(Box::new(move |process| process.id.tgid == pid))
            }
            "tree" => {
                let root = Tgid(number(name, value)?);
                Some(Box::new(move |process| process.tree.tgid == root))
            }
            "cgroup" => {
                let top = cgroup(value)?;
                Some(Box::new(move |process| process.cgroup_path.as_deref().is_some_and(|path| is_within(path, &top))))
            }
            "container" => {
                let means = container(value)?;
                Some(Box::new(move |process| means(process.container.as_deref())))
            }
            _ => None,
        })
    }
}

impl Selected for Cgroup {
    const FILTERS: &'static [&'static str] = &["container"];

    fn filter(name: &str, value: &str) -> Result<Option<Test<Self>>, Problem> {
        Ok(match name {
            "container" => {
                let means = container(value)?;
                Some(Box::new(move |cgroup| means(cgroup.container.as_deref())))
            }
            _ => None,
        })
    }
}

impl Selected for Tree {}
impl Selected for BlockDevice {}

/// What a query asks of a list.
pub(super) struct Selection<T> {
    tests: Vec<Test<T>>,
    sort: Option<Sort<T>>,
    limit: usize,
}

/// Which number to order by.
enum Sort<T> {
    Own(fn(&T) -> Number),
    Cell(cells::Named<T>),
    Counter(Field),
}

/// The items chosen.
pub(super) struct Chosen {
    /// Their places in the snapshot's list, in the order asked for.
    pub(super) places: Vec<u32>,
    /// How many matched; more than `places` where the limit cut.
    pub(super) total: usize,
}

impl<T: Selected> Selection<T> {
    /// Reads a query. Unknown parameters, repeated ones and bad values are problems.
    pub(super) fn parse(parameters: &Parameters) -> Result<Self, Problem> {
        refuse_repeated(parameters)?;
        let mut selection = Self { tests: Vec::new(), sort: None, limit: DEFAULT_LIMIT };
        for (name, value) in parameters {
            match name.as_str() {
                "limit" => selection.limit = limit(value)?,
                "sort" => selection.sort = Some(sort(value)?),
                _ => match T::filter(name, value)? {
                    Some(test) => selection.tests.push(test),
                    None => return Err(unknown(name, &[T::FILTERS, &["sort", "limit"]].concat())),
                },
            }
        }
        Ok(selection)
    }

    /// Chooses from a snapshot.
    pub(super) fn choose(&self, snapshot: &Snapshot) -> Chosen {
        let items = T::all(snapshot);
        let mut places: Vec<u32> = (0..)
            .zip(items)
            .filter(|(_, item)| self.tests.iter().all(|test| test(item)))
            .map(|(place, _)| place)
            .collect();
        let total = places.len();
        if let Some(sort) = &self.sort {
            let context = Context::of(snapshot);
            let mut keyed: Vec<_> =
                places.iter().map(|&place| (sort.read(&items[place as usize], &context), place)).collect();
            keyed.sort_by(|(a, _), (b, _)| b.compare(a));
            places = keyed.into_iter().map(|(_, place)| place).collect();
        }
        places.truncate(self.limit);
        Chosen { places, total }
    }
}

impl<T: Listed> Sort<T> {
    fn read(&self, item: &T, context: &Context) -> Number {
        match self {
            Self::Own(read) => read(item),
            Self::Cell((_, read)) => match read(item, context) {
                Cell::Number(number) => number,
                Cell::Text(_) => Number::Missing,
            },
            Self::Counter(field) => field.read(item.subject(), context),
        }
    }
}

/// Refuses every parameter, for answers that take none.
pub(super) fn no_parameters(parameters: &Parameters) -> Result<(), Problem> {
    parameters.first().map_or(Ok(()), |(name, _)| Err(unknown(name, &[])))
}

/// The one parameter `follow` of the events.
pub(super) fn follow(parameters: &Parameters) -> Result<bool, Problem> {
    refuse_repeated(parameters)?;
    match parameters {
        [] => Ok(false),
        [(name, value)] if name == "follow" => {
            value.parse().map_err(|_| Problem::query(format!("follow={value}: it takes true or false")))
        }
        [(name, _), ..] => Err(unknown(name, &["follow"])),
    }
}

/// The one parameter `pid` of the stats and of budgets.
pub(super) fn pid(parameters: &Parameters) -> Result<Option<Tgid>, Problem> {
    refuse_repeated(parameters)?;
    match parameters {
        [] => Ok(None),
        [(name, value)] if name == "pid" => Ok(Some(Tgid(number(name, value)?))),
        [(name, _), ..] => Err(unknown(name, &["pid"])),
    }
}

/// The one parameter `policy` of the recommendations.
pub(super) fn policy(parameters: &Parameters) -> Result<Option<Policy>, Problem> {
    refuse_repeated(parameters)?;
    match parameters {
        [] => Ok(None),
        [(name, value)] if name == "policy" => Policy::named(value).map(Some).ok_or_else(|| {
            Problem::query(format!("policy={value}: it takes {}", Policy::ALL.map(Policy::name).join(", ")))
        }),
        [(name, _), ..] => Err(unknown(name, &["policy"])),
    }
}

fn limit(value: &str) -> Result<usize, Problem> {
    let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    limit.ok_or_else(|| Problem::query(format!("limit={value}: it takes a number from 1 to {MAX_LIMIT}")))
}

fn sort<T: Listed>(name: &str) -> Result<Sort<T>, Problem> {
    if let Some((_, read)) = T::NUMBERS.iter().find(|(known, _)| *known == name) {
        return Ok(Sort::Own(*read));
    }
    if let Some(cell) = T::CELLS.iter().find(|(known, _)| *known == name) {
        return Ok(Sort::Cell(*cell));
    }
    let fields = || T::GROUPS.iter().flat_map(|group| group.fields());
    if let Some((_, field)) = fields().find(|(known, _)| known == name) {
        return Ok(Sort::Counter(field));
    }
    let known: Vec<_> = T::NUMBERS
        .iter()
        .map(|(name, _)| *name)
        .chain(T::CELLS.iter().map(|(name, _)| *name))
        .map(str::to_owned)
        .chain(fields().map(|(n, _)| n))
        .collect();
    Err(Problem::query(format!("sort={name}: it takes one of {}", known.join(", "))))
}

fn number<N: FromStr>(name: &str, value: &str) -> Result<N, Problem> {
    value.parse().map_err(|_| Problem::query(format!("{name}={value}: it takes a process id")))
}

/// A cgroup's path without the slash at its end, so that of the root is empty.
fn cgroup(value: &str) -> Result<String, Problem> {
    let path = value.strip_suffix('/').unwrap_or(value);
    if !value.starts_with('/') {
        return Err(Problem::query(format!("cgroup={value}: it takes a path that begins with /")));
    }
    Ok(path.to_owned())
}

/// Whether something is in the container that the query means.
fn container(value: &str) -> Result<impl Fn(Option<&Container>) -> bool + Send + use<>, Problem> {
    if value.is_empty() {
        let digits = format!("a container's name, or the first {SHORT_ID} or more digits of its id");
        return Err(Problem::query(format!("container=: it takes {digits}")));
    }
    let value = value.to_owned();
    Ok(move |container: Option<&Container>| container.is_some_and(|container| container.answers_to(&value)))
}

fn is_within(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn refuse_repeated(parameters: &Parameters) -> Result<(), Problem> {
    let repeated =
        parameters.iter().enumerate().find(|(at, (name, _))| parameters[..*at].iter().any(|(n, _)| n == name));
    repeated.map_or(Ok(()), |(_, (name, _))| Err(Problem::query(format!("{name} is given twice"))))
}

fn unknown(name: &str, known: &[&str]) -> Problem {
    Problem::query(match known {
        [] => format!("there is no parameter {name}: this answer takes none"),
        known => format!("there is no parameter {name}: this answer takes {}", known.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::{super::fixtures, *};

    fn query(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn pids(pairs: &[(&str, &str)]) -> Vec<u32> {
        let snapshot = fixtures::snapshot();
        let chosen = Selection::<Process>::parse(&query(pairs)).map_err(|p| p.json()).unwrap().choose(&snapshot);
        chosen.places.iter().map(|&place| snapshot.processes[place as usize].id.tgid.0).collect()
    }

    fn problem<T: Selected>(pairs: &[(&str, &str)]) -> String {
        Selection::<T>::parse(&query(pairs)).err().unwrap().json()
    }

    #[test]
    fn processes_are_chosen_by_pid_tree_and_cgroup() {
        assert_eq!(pids(&[]), [10, 11, 20, 30]);
        assert_eq!(pids(&[("pid", "20")]), [20]);
        assert_eq!(pids(&[("tree", "10")]), [10, 11]);
        assert_eq!(pids(&[("cgroup", "/apps")]), [10, 11, 20]);
        assert_eq!(pids(&[("cgroup", "/apps/a/")]), [10, 11]);
        assert_eq!(pids(&[("cgroup", "/wor")]), [0; 0]);
        assert_eq!(pids(&[("cgroup", "/")]), [10, 11, 20], "pid 30's cgroup is not known");
        assert_eq!(pids(&[("tree", "10"), ("pid", "11")]), [11]);
    }

    #[test]
    fn processes_and_cgroups_are_chosen_by_container() {
        fn chosen<T: Selected>(value: &str) -> Vec<u32> {
            let selection = Selection::<T>::parse(&query(&[("container", value)]));
            selection.map_err(|p| p.json()).unwrap().choose(&fixtures::snapshot_with_container()).places
        }
        for value in ["nginx", fixtures::CONTAINER_ID, &fixtures::CONTAINER_ID[..12]] {
            assert_eq!((chosen::<Process>(value), chosen::<Cgroup>(value)), (vec![2], vec![3]), "{value}");
        }
        for value in ["web-0", "ngin", &fixtures::CONTAINER_ID[..11]] {
            assert_eq!((chosen::<Process>(value), chosen::<Cgroup>(value)), (vec![], vec![]), "{value}");
        }
        assert!(problem::<Process>(&[("container", "")]).contains("a container's name, or the first 12"));
    }

    #[test]
    fn order_is_descending_by_any_number() {
        assert_eq!(pids(&[("sort", "page_faults.per_second")]), [20, 10, 11, 30]);
        assert_eq!(pids(&[("sort", "pid")]), [30, 20, 11, 10]);
        assert_eq!(pids(&[("sort", "block_io.read_latency.p99_ns")]), [20, 10, 11, 30]);
        assert_eq!(pids(&[("sort", "exited_time_ns")]), [30, 10, 11, 20]);
    }

    #[test]
    fn the_limit_cuts_after_sorting_and_the_total_stays() {
        let snapshot = fixtures::snapshot();
        let selection = Selection::<Process>::parse(&query(&[("sort", "pid"), ("limit", "2")]));
        let chosen = selection.map_err(|p| p.json()).unwrap().choose(&snapshot);
        assert_eq!((chosen.places.as_slice(), chosen.total), ([3, 2].as_slice(), 4));
    }

    #[test]
    fn what_a_query_may_not_say_is_told() {
        assert!(problem::<Tree>(&[("pid", "1")]).contains("there is no parameter pid: this answer takes sort, limit"));
        assert!(problem::<Process>(&[("limit", "0")]).contains("from 1 to 100000"));
        assert!(problem::<Process>(&[("limit", "100001")]).contains("from 1 to 100000"));
        assert!(problem::<Process>(&[("pid", "x")]).contains("a process id"));
        assert!(problem::<Process>(&[("cgroup", "work")]).contains("begins with /"));
        assert!(problem::<Process>(&[("pid", "1"), ("pid", "2")]).contains("given twice"));
        assert!(problem::<Process>(&[("sort", "command")]).contains("block_io.device_latency.max_ns"));
        assert!(problem::<BlockDevice>(&[("sort", "page_faults.per_second")]).contains("block_io.read_ops_total"));
    }

    #[test]
    fn events_take_follow_only() {
        assert_eq!(follow(&[]), Ok(false));
        assert_eq!(follow(&query(&[("follow", "true")])), Ok(true));
        assert!(follow(&query(&[("follow", "yes")])).is_err());
        assert!(follow(&query(&[("follower", "true")])).is_err());
        assert!(no_parameters(&query(&[("a", "b")])).is_err());
    }
}

//! Turns of requests and answers: what adds up, what is in flight, and the most that ever was.

use super::*;
use monitor_common::requests;

fn turns(time: u64, owners: &[(Owner, u64, u64, u64)]) -> Sample {
    let totals = |&(owner, begun, answered, peak): &(Owner, u64, u64, u64)| {
        (owner, requests::Totals { begun, answered, peak, ..requests::Totals::default() })
    };
    let counters = Some(Counters { requests: owners.iter().map(totals).collect(), ..Counters::default() });
    Sample { time: BootTime(time), counters, ..Sample::default() }
}

/// Answered, in flight, and the most in flight.
fn told(subject: &Subject) -> (u64, u64, u64) {
    let requests = subject.totals.requests.as_deref().cloned().unwrap_or_default();
    (requests.counts().answered, requests.in_flight(), requests.peak)
}

#[test]
fn groups_have_the_most_of_their_processes_or_of_any_ticks_end() {
    let mut model = model();
    let (one, two) = (owner(10, 2), owner(11, 3));
    model.take(&moments(0, vec![fork(0, &owner(1, 1), one), fork(0, &owner(1, 1), two)]));
    model.take(&turns(SECOND, &[(one, 10, 8, 5), (two, 9, 5, 4)]));
    let first = snapshot(&mut model, SECOND);
    assert_eq!((told(&find(&first, 10).subject), told(&find(&first, 11).subject)), ((8, 2, 5), (5, 4, 4)));
    assert_eq!(told(&first.host), (13, 6, 6), "six at the tick's end, though none had more than five");
    model.take(&turns(2 * SECOND, &[(one, 20, 20, 7), (two, 9, 9, 4)]));
    let second = snapshot(&mut model, 3 * SECOND);
    assert_eq!(told(&second.host), (29, 0, 7));
    assert_eq!(second.host.rates.requests, 8.0);
    assert_eq!(second.cgroups.iter().map(|cgroup| told(&cgroup.subject).0).collect::<Vec<_>>(), [29, 29, 9]);
}

#[test]
fn what_is_in_flight_when_its_process_is_forgotten_is_given_up() {
    let mut model = model();
    let process = owner(10, 2);
    model.take(&moments(0, vec![fork(0, &owner(1, 1), process)]));
    model.take(&turns(SECOND, &[(process, 3, 1, 2)]));
    model.take(&moments(SECOND, vec![exit(SECOND, process, 0)]));
    let harvest = model.take(&turns(2 * SECOND, &[(process, 3, 1, 2)])).harvest;
    assert_eq!(harvest.requests, [process]);
    model.forget(&harvest);
    let snapshot = snapshot(&mut model, 3 * SECOND);
    assert_eq!(told(&snapshot.host), (1, 0, 2));
    assert_eq!(snapshot.host.totals.requests.as_deref().unwrap().counts().unanswered, 2);
}

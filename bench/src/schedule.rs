//! What of the time a point gets, and how its runs are cut. Pure: no clock and no process.

use std::time::Duration;

use crate::external;
use crate::load::{Group, STREAM_LEAD, Work};
use crate::run::Plan;
use crate::scenario::{Layout, Point, Scenario};

/// Runs that a point gets even when it is slow, unless others would then lack the time for theirs,
const RUNS_MIN: usize = 5;
/// and in a quick run, so that there is time for all points.
const QUICK_RUNS_MIN: usize = 2;
/// How many times the runs of others a point has for which there is a bar, and of the time that nobody needs: more rounds make a
/// verdict surer.
const BARRED_SHARES: u32 = 2;
/// How much of a window counts where there is no bar, per cent.
const UNBARRED_PERCENT: u32 = 60;
/// Windows that one of a slow point stands for.
const SLOW_WINDOWS: u32 = 3;
const WARM_UP_MIN: Duration = Duration::from_millis(400);
/// The same where the clock sets the pace: what piled up while the connections were made has to be worked off.
const PACED_WARM_UP_MIN: Duration = Duration::from_millis(600);
/// Slices of a run where the load waits for answers: noise that outlasts a run of one gateway then meets all.
const SLICES: usize = 4;
/// The same of streams, of which a part does not count.
const STREAM_SLICES: usize = 2;
/// Shorter slices are not made: on a slow machine, nothing might be done in one.
const SLICE_MIN: Duration = Duration::from_millis(60);
/// Connections beyond which a slice would be over before all had their turn.
const SLICED_CONNECTIONS_MAX: usize = 64;
/// A Tomcat compiles what it runs often: whoever came first would pay for all.
pub(crate) const TOMCAT_WARM_UP: Duration = Duration::from_secs(4);
/// What a run takes beside its windows, as it was seen on a busy machine,
const RUN_OVERHEAD: Duration = Duration::from_millis(150);
/// a connection that is opened,
const OPENING: Duration = Duration::from_micros(800);
/// a gateway once, or whenever it is started: the start, and a look at its system calls,
const GATEWAY_OVERHEAD: Duration = Duration::from_millis(500);
/// and how much more than all of that may be needed, per cent.
const MARGIN_PERCENT: u32 = 10;
/// How many times its usual share a point may take to get its least number of runs, where others have what they need.
const SHARES_MAX: u32 = 3;

/// How long a slice of a run takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// Before what counts.
    pub(crate) warm_up: Duration,
    /// What counts.
    pub(crate) window: Duration,
}

/// What a point asks of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// Without which it has too few runs.
    least: Duration,
    /// Of what is left when all have that.
    shares: u32,
}

/// What a point gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Beyond this it gets no more runs than the least number,
    pub(crate) usual: Duration,
    /// and beyond this none.
    pub(crate) most: Duration,
}

impl Share {
    /// Whether there is time for one more run behind `done` ones that have taken `elapsed`, of which there should be `least` at least.
    pub(crate) fn allows(self, elapsed: Duration, done: usize, least: usize) -> bool {
        let bound = if done < least { self.most } else { self.usual };
        done == 0 || elapsed + elapsed / count(done) <= bound
    }
}

/// What the first of `needs` gets of the time that is `left` for all of them. Where that is too little for all, each gets a part of
/// what it needs.
pub(crate) fn share(left: Duration, needs: &[Need]) -> Share {
    let first = needs[0];
    let least: Duration = needs.iter().map(|need| need.least).sum();
    match left.checked_sub(least) {
        Some(spare) => {
            let shares: u32 = needs.iter().map(|need| need.shares).sum();
            let usual = first.least + spare * first.shares / shares;
            Share { usual, most: (usual * SHARES_MAX).min(first.least + spare) }
        }
        None => {
            let part = left.mul_f64(first.least.as_secs_f64() / least.as_secs_f64());
            Share { usual: part, most: part }
        }
    }
}

/// What the points of a plan ask of the time, in their order.
pub(crate) fn needs(plan: &Plan) -> Vec<Need> {
    plan.points().map(|(scenario, point)| need(plan, scenario, point)).collect()
}

fn need(plan: &Plan, scenario: &Scenario, point: &Point) -> Need {
    let layout = point.layout(scenario);
    let gateways = plan.kinds.len() + plan.floors(point).len();
    let subjects = gateways + usize::from(point.is_compared_to_direct());
    let Timing { warm_up, window } = timing(plan, layout, point);
    let slice = match point.generator {
        Some(_) => external::duration(window),
        None if point.groups.iter().all(is_stream) => STREAM_LEAD + window,
        None => warm_up + window,
    };
    let opening = OPENING * count(point.groups.iter().map(|group| group.connections).sum());
    // How often in a run, or else once.
    let (windows, starts, openings) = match layout {
        Layout::Scaling => (2, 2, 2),
        _ if is_idle(point) => (1, 1, 1),
        _ => (slices(plan, layout, point), 0, usize::from(!point.groups.iter().all(is_kept))),
    };
    let run = RUN_OVERHEAD
        + slice * count(windows)
        + GATEWAY_OVERHEAD * count(starts)
        + opening * count(openings);
    let once = GATEWAY_OVERHEAD + if openings == 0 { opening } else { Duration::ZERO };
    let runs = runs_min(plan).min(runs(plan, point));
    let least = (run * count(runs) + once) * count(subjects) * (100 + MARGIN_PERCENT) / 100
        + if point.tomcat { TOMCAT_WARM_UP } else { Duration::ZERO };
    Need { least, shares: shares(point) }
}

/// Runs that a point gets though it takes longer than its share.
pub(crate) fn runs_min(plan: &Plan) -> usize {
    if plan.quick { QUICK_RUNS_MIN } else { RUNS_MIN }
}

/// Runs that a point gets where there is time.
pub(crate) fn runs(plan: &Plan, point: &Point) -> usize {
    // Memory hardly differs from run to run, of which each starts a process and opens all tunnels anew.
    let times = if is_idle(point) { 1 } else { shares(point) };
    plan.runs * usize::try_from(times).expect("a few")
}

/// How long each slice of a run takes.
pub(crate) fn timing(plan: &Plan, layout: Layout, point: &Point) -> Timing {
    let has_pace = |group: &Group| matches!(group.work, Work::Paced { .. });
    let warm_up = match layout {
        // Each has a part that does not count.
        _ if point.groups.iter().all(is_stream) => Duration::ZERO,
        _ if point.groups.iter().any(has_pace) => PACED_WARM_UP_MIN,
        Layout::OneCore => plan.warm_up,
        // What piled up while the connections were made is not to be seen in latencies.
        Layout::TwoCores | Layout::Scaling => plan.warm_up.max(WARM_UP_MIN),
    };
    let slices = count(slices(plan, layout, point));
    Timing { warm_up: warm_up / slices, window: window(plan, point) / slices }
}

/// What counts in a run of a point.
fn window(plan: &Plan, point: &Point) -> Duration {
    let percent = if point.has_bar() { 100 } else { UNBARRED_PERCENT };
    plan.window * percent / 100 * if point.slow { SLOW_WINDOWS } else { 1 }
}

/// Of how many slices a run of a point is made, of which each has its part of the window. Connections that are not driven wait
/// for their gateway's next slice; streams last as long as one. Messages with a pace of their own would not wait; and of bulk,
/// sockets hold so much that a good part of it would move between the slices, where nobody looks.
pub(crate) fn slices(plan: &Plan, layout: Layout, point: &Point) -> usize {
    let is_driven = |group: &Group| {
        matches!(group.work, Work::Get { .. } | Work::Echo { .. } | Work::Connect { .. })
            && group.connections <= SLICED_CONNECTIONS_MAX
    };
    let most = if point.generator.is_some() {
        1
    } else if point.groups.iter().all(is_stream) {
        STREAM_SLICES
    } else if layout == Layout::OneCore && point.groups.iter().all(is_driven) {
        SLICES
    } else {
        1
    };
    let fit =
        usize::try_from(window(plan, point).as_millis() / SLICE_MIN.as_millis()).unwrap_or(most);
    fit.clamp(1, most)
}

/// Who comes when in a round, by index: none is always first, and none always follows the same one, whose connections,
/// caches and garbage it would have to pay for each time. Over as many rounds as there are (twice as many when that is an odd
/// number) each has had every place equally often, and has followed each other one equally often: E. J. Williams,
/// "Experimental designs balanced for the estimation of residual effects of treatments", 1949.
pub(crate) fn order(round: usize, count: usize) -> Vec<usize> {
    let zigzag = (0..count).map(|at| if at % 2 == 0 { at / 2 } else { count - 1 - at / 2 });
    let mut order: Vec<usize> = zigzag.map(|index| (index + round) % count).collect();
    if count % 2 == 1 && round / count % 2 == 1 {
        order.reverse();
    }
    order
}

fn is_idle(point: &Point) -> bool {
    point.groups.iter().any(|group| group.work == Work::Idle)
}

fn is_stream(group: &Group) -> bool {
    group.work == Work::Stream
}

/// Whether connections of a group cost nothing while nobody drives them, and may be kept from one run to the next: to open a
/// thousand of them takes as long as a run. Of bulk, what the sockets hold would flow on.
pub(crate) fn is_kept(group: &Group) -> bool {
    match group.work {
        Work::Get { .. }
        | Work::Echo { .. }
        | Work::Paced { .. }
        | Work::Connect { .. }
        | Work::Stream => true,
        Work::Idle | Work::Download { .. } | Work::Upload { .. } => false,
    }
}

fn shares(point: &Point) -> u32 {
    if point.has_bar() { BARRED_SHARES } else { 1 }
}

fn count(few: usize) -> u32 {
    u32::try_from(few).expect("a few")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::PathBuf;

    use clap::Parser as _;

    use super::*;
    use crate::gateways::{Kind, Route};
    use crate::options::Options;

    const SECOND: Duration = Duration::from_secs(1);

    fn plan(scenarios: Vec<Scenario>) -> Plan {
        Plan {
            kinds: vec![Kind::Tlsplice(Route::Auto), Kind::Apache],
            scenarios,
            quick: false,
            runs: 5,
            warm_up: SECOND / 8,
            window: SECOND / 2,
            bound: SECOND,
            directory: PathBuf::new(),
            binary: PathBuf::new(),
            next: PathBuf::new(),
        }
    }

    const fn milliseconds(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn each_has_every_place_and_every_predecessor_equally_often() {
        for count in 1..=13 {
            let rounds = if count % 2 == 1 { 2 * count } else { count };
            let (mut places, mut pairs) = (HashMap::new(), HashMap::new());
            for round in 0..rounds {
                let order = order(round, count);
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert!(sorted.into_iter().eq(0..count), "each once: {order:?}");
                for (place, index) in order.iter().enumerate() {
                    *places.entry((place, *index)).or_insert(0) += 1;
                }
                for pair in order.windows(2) {
                    *pairs.entry(pair.to_vec()).or_insert(0) += 1;
                }
            }
            assert_eq!(places.len(), count * count);
            assert!(places.values().all(|times| *times == rounds / count));
            assert_eq!(pairs.len(), count * (count - 1));
            assert!(pairs.values().all(|times| *times == rounds / count));
        }
    }

    #[test]
    fn what_others_need_is_left_to_them() {
        let need = |least, shares| Need { least: SECOND * least, shares };
        let of = |left, needs: &[Need]| {
            let Share { usual, most } = share(SECOND * left, needs);
            (usual.as_secs_f64(), most.as_secs_f64())
        };
        let needs = [need(10, 2), need(30, 1), need(5, 1)];
        assert_eq!(of(45, &needs), (10.0, 10.0));
        assert_eq!(of(65, &needs), (20.0, 30.0));
        assert_eq!(of(1045, &needs), (510.0, 1010.0));
        assert_eq!(of(145, &[need(10, 1), need(30, 2), need(5, 2)]), (30.0, 90.0));
        assert_eq!(of(9, &needs), (2.0, 2.0), "a fifth of what all need");
        assert_eq!(of(0, &needs), (0.0, 0.0));
    }

    #[test]
    fn a_run_that_would_take_the_time_of_others_is_not_made() {
        let share = Share { usual: SECOND * 10, most: SECOND * 20 };
        let allows = |seconds, done| share.allows(SECOND * seconds, done, 5);
        assert!(allows(100, 0), "one is always made");
        assert!(allows(16, 4) && !allows(17, 4), "the fifth would end at 20 s, or later");
        assert!(allows(8, 5) && !allows(9, 5), "the sixth, at 9.6 and 10.8 s");
    }

    fn need_of(plan: &Plan, name: &str, wanted: &str) -> Need {
        let mut points = plan.points().zip(needs(plan));
        let found =
            points.find(|((scenario, point), _)| scenario.name == name && point.name == wanted);
        found.expect("there is one").1
    }

    #[test]
    fn a_point_needs_what_its_runs_take() {
        let mut plan = plan(crate::scenario::load(None, None).expect("our own"));
        // What a run takes and what is once, in milliseconds, and of how many gateways.
        let taken = |runs: u32, run: u64, once: u64, gateways: u32| {
            (milliseconds(run) * runs + milliseconds(once)) * gateways * 110 / 100
        };
        let close = |plan: &Plan, name: &str, point: &str, wanted: Duration| {
            let Need { least, .. } = need_of(plan, name, point);
            let difference = least.abs_diff(wanted);
            assert!(difference < milliseconds(10), "{name} / {point}: {least:?}, {wanted:?}");
        };
        for (name, point, run, once, gateways) in [
            ("get", "TLS, 64 connections", 150 + 125 + 500, 500 + 51, 2),
            ("get", "TLS, 1 connection", 150 + 125 + 500, 500 + 1, 5),
            ("get", "TLS, 1000 connections", 150 + 125 + 300, 500 + 800, 2),
            ("get", "TLS, 64 connections, wrk", 150 + 1000, 500 + 51, 2),
            ("echo", "65536 B, 1000 tunnels", 150 + 125 + 900, 500 + 800, 2),
            ("paced", "1000 tunnels x 20/s", 150 + 600 + 500, 500 + 800, 4),
            ("idle", "5000 tunnels", 150 + 400 + 500 + 500 + 4000, 500, 2),
            ("flush", "64 streams", 150 + 600 + 500, 500 + 51, 5),
            ("bulk", "download tls, 16 connections", 150 + 125 + 500 + 13, 500, 2),
            ("scaling", "64 connections", 150 + 2 * 900 + 2 * 500 + 2 * 51, 500, 2),
        ] {
            close(&plan, name, point, taken(5, run, once, gateways));
        }
        let tomcat = taken(5, 150 + 125 + 300, 500 + 13, 2) + TOMCAT_WARM_UP;
        close(&plan, "tomcat", "servlet", tomcat);
        plan.runs = 1;
        close(&plan, "get", "TLS, 64 connections", taken(2, 775, 551, 2));
        close(&plan, "get", "TLS, 1000 connections", taken(1, 575, 1300, 2));
        (plan.runs, plan.quick) = (5, true);
        close(&plan, "get", "TLS, 1 connection", taken(2, 775, 501, 2));
    }

    #[test]
    fn there_is_time_for_what_all_points_need() {
        for options in [&["bench", "--tlsplice", "x"][..], &["bench", "--tlsplice", "x", "--quick"]]
        {
            let options = Options::try_parse_from(options).expect("they are valid");
            let plan = Plan {
                kinds: options.kinds(false).expect("known rivals"),
                quick: options.quick,
                warm_up: options.warm_up(),
                window: options.window(),
                ..plan(crate::scenario::load(None, None).expect("our own"))
            };
            let least: Duration = needs(&plan).iter().map(|need| need.least).sum();
            assert!(least < options.bound(), "{least:?} of {:?}", options.bound());
        }
    }

    #[test]
    fn bulk_is_not_sliced_since_sockets_move_it_between_slices() {
        let plan = plan(crate::scenario::load(None, None).expect("our own"));
        let mut sliced = 0;
        for (scenario, point) in plan.points() {
            let slices = slices(&plan, point.layout(scenario), point);
            let is_bulk =
                |group: &Group| matches!(group.work, Work::Download { .. } | Work::Upload { .. });
            if point.groups.iter().any(is_bulk) {
                assert_eq!(slices, 1, "{} / {}", scenario.name, point.name);
            }
            sliced += usize::from(slices > 1);
        }
        assert!(sliced > 0);
    }

    #[test]
    fn short_windows_are_not_sliced_to_nothing() {
        let scenarios = crate::scenario::load(Some("echo"), Some("128 B, 1 tunnel")).expect("ours");
        let mut plan = plan(scenarios.clone());
        let mut of = |window| {
            plan.window = Duration::from_millis(window);
            slices(&plan, Layout::OneCore, &scenarios[0].points[0])
        };
        assert_eq!([10, 100, 150, 250, 5000].map(&mut of), [1, 1, 2, 4, 4]);
    }
}

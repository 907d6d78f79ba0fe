//! What of the time a point gets, and how its runs are cut. Pure: no clock and no process.

use std::time::Duration;

use crate::load::{Group, Work};
use crate::run::Plan;
use crate::scenario::{Layout, Point, Scenario};

/// Runs that a point gets even when it is slow, unless it is very slow,
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
/// What a run takes beside its windows, and a connection that is opened, as it was seen on a busy machine.
const RUN_OVERHEAD: Duration = Duration::from_millis(150);
const OPENING: Duration = Duration::from_micros(800);
/// What a gateway takes once: its start, and a look at its system calls.
const GATEWAY_OVERHEAD: Duration = Duration::from_millis(500);

/// How long a slice of a run takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// Before what counts.
    pub(crate) warm_up: Duration,
    /// What counts.
    pub(crate) window: Duration,
}

/// What a point asks of the time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// Without which it has too few runs.
    least: Duration,
    /// Of what is left when all have that.
    shares: u32,
}

/// How long the first of `needs` may take of the time that is `left` for all of them.
pub(crate) fn share(left: Duration, needs: &[Need]) -> Duration {
    let Some(first) = needs.first() else { return Duration::ZERO };
    let least: Duration = needs.iter().map(|need| need.least).sum();
    match left.checked_sub(least) {
        Some(spare) => {
            first.least + spare * first.shares / needs.iter().map(|need| need.shares).sum::<u32>()
        }
        None => left.mul_f64(first.least.as_secs_f64() / least.as_secs_f64()),
    }
}

/// What the points of a plan ask of the time, in their order.
pub(crate) fn needs(plan: &Plan) -> Vec<Need> {
    plan.points().map(|(scenario, point)| need(plan, scenario, point)).collect()
}

fn need(plan: &Plan, scenario: &Scenario, point: &Point) -> Need {
    let layout = point.layout(scenario);
    let gateways = plan.kinds.len() + if plan.quick { 0 } else { point.floors.len() };
    let subjects = gateways + usize::from(point.is_compared_to_direct());
    let Timing { warm_up, window } = timing(plan, layout, point);
    let windows = slices(plan, layout, point) * if layout == Layout::Scaling { 2 } else { 1 };
    let opening = OPENING * count(point.groups.iter().map(|group| group.connections).sum());
    let is_opened_once = point.groups.iter().all(is_kept);
    let run = RUN_OVERHEAD
        + (warm_up + window) * count(windows)
        + if is_opened_once { Duration::ZERO } else { opening };
    let once = GATEWAY_OVERHEAD + if is_opened_once { opening } else { Duration::ZERO };
    let least = (run * count(runs_min(plan).min(plan.runs)) + once) * count(subjects)
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
    let is_idle = point.groups.iter().any(|group| group.work == Work::Idle);
    let times = if is_idle { 1 } else { shares(point) };
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

fn is_stream(group: &Group) -> bool {
    group.work == Work::Stream
}

/// Whether connections of a group cost nothing while nobody drives them, and may be kept from one run to the next: a
/// thousand of them are not opened within a second. Of bulk, what the sockets hold would flow on.
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
    use std::path::PathBuf;

    use super::*;
    use crate::gateways::{Kind, Route};

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

    #[test]
    fn what_others_need_is_left_to_them() {
        let need = |least, shares| Need { least: SECOND * least, shares };
        let needs = [need(10, 2), need(30, 1), need(5, 1)];
        assert_eq!(share(SECOND * 45, &needs), SECOND * 10);
        assert_eq!(share(SECOND * 65, &needs), SECOND * 20);
        assert_eq!(share(SECOND * 30, &needs[1..]), SECOND * 30 * 30 / 35);
        assert_eq!(share(Duration::ZERO, &needs), Duration::ZERO);
        assert_eq!(share(SECOND, &[]), Duration::ZERO);
    }

    #[test]
    fn a_point_needs_more_time_with_more_to_open_and_more_to_compare_and_less_without_a_bar() {
        let scenarios = crate::scenario::load(None, None).expect("our own");
        let plan = plan(scenarios);
        let of = |name: &str, wanted: &str| {
            let points = plan.points().zip(needs(&plan));
            let mut found = points
                .filter(|((scenario, point), _)| scenario.name == name && point.name == wanted);
            found.next().expect("there is one").1.least
        };
        assert!(of("get", "TLS, 1000 connections") > of("get", "plain, 64 connections, h2load"));
        assert!(of("get", "TLS, 1 connection") > of("get", "TLS, 64 connections"), "floors");
        assert!(of("idle", "5000 tunnels") > SECOND * 40);
        assert!(of("echo", "65536 B, 64 tunnels") < of("echo", "4096 B, 64 tunnels"));
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

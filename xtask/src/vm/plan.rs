//! What is run in a guest, and the scripts that run it there.

use super::guest::PRINTED;
use super::kernel::{self, Kernel, Tls};

/// Where the gateway lies.
pub(super) const GATEWAY: &str = "/t/debug/tlsplice";

/// Test programs that run on a kernel alone, without Tomcat and browser, and to which it makes a difference who runs the
/// record layer and how payload is moved.
const SUITES_OF_MODES: [&str; 9] =
    ["matrix", "records", "splice", "tls", "wire", "guest", "foreign", "websocket", "http"];

/// Those to which it makes none: one mode is enough.
const SUITES_OF_ONE_MODE: [&str; 9] = [
    "ebpf",
    "degraded",
    "admin",
    "metrics",
    "top",
    "identity",
    "operations",
    "posture",
    "refusals",
];

/// The one whose tests change settings of the whole kernel, which others would feel.
const ALONE: &str = "guest";

/// What hostile peers do, in the short form of these tests.
const ATTACKS: [&str; 3] = ["attacks", "preambles", "amounts"];

/// Changes the kernel until it is restarted, so that nothing can come after it.
const LAST: [&str; 1] = ["netcls"];

/// The program that counts instructions.
const COST: [&str; 1] = ["cost"];

/// Everything that is put into guests.
pub(super) fn programs() -> impl Iterator<Item = &'static str> {
    SUITES_OF_MODES.into_iter().chain(SUITES_OF_ONE_MODE).chain(ATTACKS).chain(LAST).chain(COST)
}

/// What the short form runs in the preferred mode on a kernel without TLS, where it is user space as on the host: payload,
/// what is measured, and what is given up.
const SUITES_OF_NO_TLS: [&str; 5] = ["matrix", "guest", "foreign", "ebpf", "degraded"];

/// What it runs there on one with TLS: the record layer as well.
const SUITES_OF_TLS: [&str; 9] =
    ["matrix", "records", "tls", "wire", "guest", "foreign", "ebpf", "degraded", "posture"];

/// What it runs there on [`kernel::REFERENCE`]: splicing of its own as well.
const SUITES_OF_REFERENCE: [&str; 10] = [
    "matrix", "records", "splice", "tls", "wire", "guest", "foreign", "ebpf", "degraded", "posture",
];

/// What it runs on [`kernel::REFERENCE`] with the kernel's record layer and without splicing: every shape of payload.
const SUITES_OF_PAYLOAD: [&str; 1] = ["matrix"];

/// Tests that no guest runs, and why.
pub(super) const LEFT_OUT: [(&str, &str); 4] = [
    (
        "the_kernel_agrees_with_time_stamps_inside_the_stream",
        "emulation proves no precision; bounds and counts are proven by the other one with time stamps",
    ),
    ("a_group_that_another_program_has_for_itself_is_done_without", "guests have no Perl"),
    ("others_of_the_same_user_cannot_look_into_it", "guests have no setpriv"),
    ("who_cannot_become_the_configured_user_does_not_serve", "guests have no setpriv"),
];

/// What the short form leaves out: what takes longest in emulation, ...
const LONG_TESTS: [&str; 21] = [
    "a_thousand_connections",
    "the_largest_body",
    "little_unsent_data",
    "a_call_for_the_handover",
    "clients_that_go_away",
    "small_messages_of_others",
    "each_version_and_cipher",
    "thousands_of_connections",
    "has_no_place_for",
    "ten_thousand_key_updates",
    "downloads_and_uploads_arrive_whole",
    "chunked_bodies_keep_every_byte",
    "a_client_that_reads_slowly",
    "without_pipes",
    "uploads_cut_by_the_client",
    "next_to_nothing_is_measured",
    "no_chunk_waits_longer",
    "a_key_update_is_no_delay",
    "killed_leaves_nothing_attached",
    "a_tunnel_in_bulk",
    "nobody_else_notices",
];

/// ... and what is the same on every kernel, and tested where the short form is started.
const TESTS_OF_NO_KERNEL: [&str; 9] = [
    "a_client_may_insist_on_another_group",
    "the_hybrid_key_exchange",
    "names_choose_certificates",
    "only_http_1_1_is_spoken",
    "the_unit_",
    "a_service_manager_is_told",
    "makes_the_watchdog_bark",
    "a_key_is_not_in_memory",
    "a_gateway_of_nobody_reloads",
];

/// How much is bulk in the short form, in bytes: splicing begins at 64 KiB.
const BULK_BYTES: u32 = 500_000;

/// Time for one test, in seconds; emulation is slow, and its host is busy.
const TEST_SECONDS: u32 = 1_200;

/// Largest packets of the loopback device: as it comes, and as on Ethernet, where records fall apart into segments.
const MTU: u32 = 65_536;
const MTU_OF_ETHERNET: u32 = 1_500;

/// Who runs the record layer, and how payload is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    UserCopy,
    KernelCopy,
    KernelSplice,
}

impl Mode {
    /// The one that is preferred comes first.
    const ALL: [Self; 3] = [Self::KernelSplice, Self::KernelCopy, Self::UserCopy];

    fn name(self) -> &'static str {
        match self {
            Self::UserCopy => "user/copy",
            Self::KernelCopy => "kernel/copy",
            Self::KernelSplice => "kernel/splice",
        }
    }

    /// `offload` and `splice` of the listener.
    fn keys(self) -> (&'static str, &'static str) {
        match self {
            Self::UserCopy => ("never", "never"),
            Self::KernelCopy => ("always", "never"),
            Self::KernelSplice => ("always", "auto"),
        }
    }
}

/// How much is run in each guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Every suite; those to which the mode makes a difference in each of them.
    Full,
    /// What is about kernels in the preferred mode, and payload with the kernel's record layer, without the longest tests.
    Short,
    /// What hostile peers do, in every mode.
    Attacks,
    /// No tests: what each mode costs, counted in instructions.
    Cost,
}

/// What is chosen of that.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Choice<'a> {
    /// Parts of the names of tests or of suites, with blanks between.
    pub(crate) filter: Option<&'a str>,
    /// A part of the name of a run.
    pub(crate) run: Option<&'a str>,
}

/// What is run in each guest.
#[derive(Clone, Copy)]
pub(crate) struct Plan<'a> {
    pub(crate) extent: Extent,
    pub(crate) choice: Choice<'a>,
    /// Where a Tomcat listens on the loopback of the host.
    pub(crate) tomcat_port: u16,
}

/// Suites that are run in one mode, with one size of packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// What the console calls it.
    pub(super) name: String,
    pub(super) mode: Mode,
    mtu: u32,
    pub(super) suites: &'static [&'static str],
    /// Options that leave tests out.
    skipped: String,
}

impl Plan<'_> {
    /// The runs on a kernel. One that cannot do TLS falls back to user space in each mode: one of them shows it.
    pub(super) fn runs(self, kernel: &Kernel) -> Vec<Run> {
        let is_short = self.extent == Extent::Short;
        let skipped: Vec<String> = LEFT_OUT
            .iter()
            .map(|(name, _)| name)
            .chain(LONG_TESTS.iter().chain(&TESTS_OF_NO_KERNEL).filter(|_| is_short))
            .map(|name| format!("--skip {name}"))
            .collect();
        let run = |mode: Mode, mtu: u32, suites| Run {
            name: format!("{}@{mtu}", mode.name()),
            mode,
            mtu,
            suites,
            skipped: skipped.join(" "),
        };
        let modes = if kernel.tls == Tls::None { &Mode::ALL[..1] } else { &Mode::ALL };
        // The first suites in the preferred mode, the others in each other mode.
        let in_modes = |first, others| {
            let suites = std::iter::once(first).chain(std::iter::repeat(others));
            modes.iter().zip(suites).map(|(&mode, suites)| run(mode, MTU, suites))
        };
        let last = std::iter::once(run(modes[0], MTU, &LAST[..]));
        let mut runs: Vec<Run> = match self.extent {
            Extent::Attacks => in_modes(&ATTACKS[..], &ATTACKS[..]).collect(),
            Extent::Cost => in_modes(&COST[..], &COST[..]).collect(),
            // What depends on kernels and modes comes first.
            Extent::Full => {
                let ethernet = |&mode| run(mode, MTU_OF_ETHERNET, &SUITES_OF_MODES[..1]);
                in_modes(&SUITES_OF_MODES[..], &SUITES_OF_MODES[..])
                    .chain(modes.iter().map(ethernet))
                    .chain(std::iter::once(run(modes[0], MTU, &SUITES_OF_ONE_MODE[..])))
                    .chain(in_modes(&ATTACKS[..], &ATTACKS[..]))
                    .chain(last)
                    .collect()
            }
            // TLS in user space is tested without a guest, and in that of a kernel that cannot do it. That payload is
            // copied and not spliced makes a difference to the gateway, and less to the kernel.
            Extent::Short => {
                let is_reference = kernel.name == kernel::REFERENCE;
                let suites = match kernel.tls {
                    Tls::None => &SUITES_OF_NO_TLS[..],
                    Tls::Keys | Tls::Rekey if is_reference => &SUITES_OF_REFERENCE[..],
                    Tls::Keys | Tls::Rekey => &SUITES_OF_TLS[..],
                };
                let copy = run(Mode::KernelCopy, MTU, &SUITES_OF_PAYLOAD[..]);
                std::iter::once(run(modes[0], MTU, suites))
                    .chain(is_reference.then_some(copy))
                    .chain(last)
                    .collect()
            }
        };
        runs.retain(|run| self.choice.run.is_none_or(|part| run.name.contains(part)));
        runs
    }
}

/// The place of a test program. Tests look for what they share three levels above themselves.
pub(super) fn suite(name: &str) -> String {
    format!("/t/debug/deps/{name}")
}

/// Where the script lies that runs one test.
pub(super) const ONE_TEST_PLACE: &str = "one-test";

/// Runs one test in a process of its own and says how it ended: its arguments are the run, the suite and the test.
/// That a test was found and ran is part of success.
pub(super) fn one_test() -> String {
    format!(
        "#!/bin/busybox sh\n\
         log=/tmp/log.$$; begun=$(cut -d. -f1 /proc/uptime)\n\
         timeout -s KILL {TEST_SECONDS} /t/debug/deps/$2 --exact $3 --include-ignored --nocapture --test-threads=1 >$log 2>&1\n\
         status=$?; ended=$(cut -d. -f1 /proc/uptime)\n\
         if [ $status = 0 ] && ! grep -q '^test result: ok. 1 passed' $log; then status=unseen; fi\n\
         echo \"RESULT $status $1 $2 $3 $((ended - begun))s\"\n\
         sed -n \"s|^COST |COST $1 |p\" $log\n\
         sed -n -e 's|^.*GROUP |GROUP |p' -e 's|^.*REASON |REASON |p' $log\n\
         if [ $status != 0 ]; then tail -n 100 $log | sed 's/^/{PRINTED}/'; fi\n\
         rm $log\n"
    )
}

/// A gateway that runs all the time. Its programs in the kernel stay attached: the kernel patches its own code when the first
/// comes and when the last goes, which an emulated processor may see too late and take for a fault (`Oops: int3`).
const HELD: &str = r#"[[listener]]\naddress = "127.0.0.1:0"\nservice = "http"\n[[route]]\nupstream = "http://127.0.0.1:9"\n"#;

/// What the guest runs as its first process.
pub(super) fn script(modules: &[&str], runs: &[Run], plan: Plan<'_>) -> String {
    let modules = modules.join(" ");
    let filter = plan.choice.filter.unwrap_or_default();
    let tomcat = plan.tomcat_port;
    let bulk = match plan.extent {
        Extent::Short => format!("export TLSPLICE_TEST_BULK={BULK_BYTES}\n"),
        Extent::Full | Extent::Attacks | Extent::Cost => String::new(),
    };
    let mut script = format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/bin:/usr/bin HOME=/root RUST_BACKTRACE=0 TLSPLICE_TEST_BINARY={GATEWAY} TLSPLICE_TEST_GUEST=1 TLSPLICE_TEST_SHORT=1\n\
         export TLSPLICE_TEST_TOMCAT=10.0.2.2:{tomcat}\n{bulk}\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp\n\
         mkdir -p /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup || echo \"PROBLEM cgroup2\"\n\
         ulimit -n 16384\n\
         for module in {modules}; do insmod /modules/$module.ko || echo \"PROBLEM module $module\"; done\n\
         ip link set lo up; ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 || echo \"PROBLEM no network\"\n\
         echo \"{BEGUN}$(uname -r)\"\n\
         {GATEWAY} --version | sed 's/^/VERSION /'\n\
         printf '{HELD}' >/tmp/held.toml; {GATEWAY} run --config /tmp/held.toml 2>/dev/null &\n\
         run() {{\n\
         name=$1; ip link set lo mtu $2 || echo \"PROBLEM mtu $2\"; shift 2; rm -f /tmp/planned\n\
         for suite in $*; do\n\
         wanted='{filter}'; for part in $wanted; do case $suite in *\"$part\"*) wanted=;; esac; done\n\
         /t/debug/deps/$suite --list --format terse $skipped $wanted >/tmp/list || echo \"PROBLEM $suite lists no tests\"\n\
         sed -n \"s|^\\(.*\\): test\\$|$name $suite \\1|p\" /tmp/list >>/tmp/planned; done\n\
         sed 's/^/PLANNED /' /tmp/planned\n\
         sed -n 1p /tmp/planned | xargs -r -n 3 sh /{ONE_TEST_PLACE}\n\
         sed 1d /tmp/planned | grep -v ' {ALONE} ' | xargs -r -P 2 -n 3 sh /{ONE_TEST_PLACE}\n\
         sed 1d /tmp/planned | grep ' {ALONE} ' | xargs -r -n 3 sh /{ONE_TEST_PLACE}\n\
         echo \"CONNECTIONS $name $(grep -w TlsTxSw /proc/net/tls_stat)\"\n\
         }}\n"
    );
    for Run { name, mode, mtu, suites, skipped } in runs {
        let (offload, splice) = mode.keys();
        script.push_str(&format!(
            "export TLSPLICE_TEST_OFFLOAD={offload} TLSPLICE_TEST_SPLICE={splice}; skipped=\"{skipped}\"\n\
             run {name} {mtu} {}\n",
            suites.join(" ")
        ));
    }
    script.push_str(&format!("echo {DONE}\nreboot -f\n"));
    script
}

/// The first words of a guest that came up.
pub(super) const BEGUN: &str = "KERNEL ";

/// The last words of a guest that has done everything.
pub(super) const DONE: &str = "GUEST-DONE";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::kernel;

    #[test]
    fn payload_is_moved_on_every_kernel_and_the_long_form_leaves_out_no_mode_and_no_suite() {
        let of = |extent| Plan { extent, choice: Choice::default(), tomcat_port: 0 };
        let reference = kernel::ALL.iter().find(|kernel| kernel.name == kernel::REFERENCE);
        let reference = reference.expect("it is one of them");
        assert!(!reference.is_optional);
        for mode in [Mode::KernelSplice, Mode::KernelCopy] {
            let mut runs = of(Extent::Short).runs(reference).into_iter();
            assert!(runs.any(|run| run.mode == mode && run.suites.contains(&"matrix")), "{mode:?}");
        }
        for kernel in &kernel::ALL {
            let short = of(Extent::Short).runs(kernel);
            assert!(short.iter().any(|run| run.suites.contains(&"matrix")), "{}", kernel.name);
            let full = of(Extent::Full).runs(kernel);
            let has_modes = kernel.tls != Tls::None;
            for mode in Mode::ALL.into_iter().filter(|_| has_modes) {
                for suite in SUITES_OF_MODES {
                    let mut of_mode = full.iter().filter(|run| run.mode == mode);
                    assert!(of_mode.any(|run| run.suites.contains(&suite)), "{mode:?}: {suite}");
                }
            }
        }
    }
}

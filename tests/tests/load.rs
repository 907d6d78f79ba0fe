//! A reduced form of `cargo xtask load`: counts and correctness; how long things take is not asked of a busy machine.

use std::time::Duration;

use tlsplice_tests::load::{self, Options};

#[test]
fn hostile_clients_of_every_kind_end_and_tunnels_go_on() {
    let options = Options {
        idle: 300,
        active: 20,
        per_second: 10,
        slow: 10,
        handshakes: 100,
        turns: 2,
        window: Duration::from_secs(6),
    };
    // It is an error when a message does not come back, or a tunnel ends.
    let report = load::run(options, |line| println!("{line}")).expect("all tunnels go on");
    println!("{report}");
    assert!(report.calm.count > 0 && report.hostile.count > 0, "{report}");
    assert!(report.handshakes > 0 && report.refused == 0, "{report}");
    for reason in ["408 the request head did not arrive in time", "200 the response body"] {
        let is_told = report.reasons.keys().any(|found| found.starts_with(reason));
        assert!(is_told, "{reason:?} is not in the access log: {report}");
    }
    assert!(report.descriptors[1] <= report.descriptors[0], "{report}");
}

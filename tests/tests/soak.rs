//! A minute of the soak.

use std::time::Duration;

use tlsplice_tests::PATIENCE;
use tlsplice_tests::pump::Random;
use tlsplice_tests::soak::{self, Options};

/// How long, in seconds.
const SECONDS_VARIABLE: &str = "TLSPLICE_TEST_SOAK_SECONDS";

#[test]
fn mixed_load_under_faults_loses_nothing_and_leaves_nothing_behind() {
    let seconds =
        std::env::var(SECONDS_VARIABLE).map_or(180, |text| text.parse().expect("seconds"));
    let seed = u64::try_from(Random::seeded().up_to(1 << 32)).expect("a small number");
    let length = Duration::from_secs(seconds);
    // How soon is what `cargo xtask soak` asks; here it is whether.
    let options = Options { seed, length, recovery: PATIENCE };
    let report = soak::run(options, |line| println!("{line}"));
    assert!(report.is_good(), "{report}");
    assert!(report.faults() >= 5 && report.effects() > 10, "too little was done: {report}");
}

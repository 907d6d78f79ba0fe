//! The engine around one target, whose name is in the environment: libFuzzer takes the command line for itself.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tlsplice_fuzz::Property;

static TARGET: OnceLock<Property> = OnceLock::new();

fuzz_target!(
    init: {
        let name = std::env::var("TLSPLICE_FUZZ_TARGET").unwrap_or_default();
        let target = tlsplice_fuzz::find(&name).expect("TLSPLICE_FUZZ_TARGET names a target");
        TARGET.get_or_init(|| target);
    },
    |data: &[u8]| {
        if let Some(target) = TARGET.get() {
            target(data);
        }
    }
);

use std::sync::LazyLock;

use tlsplice::config::Config;
use tlsplice::message::target::{self, Target};

use crate::configuration;
use crate::tomcat::HABITS;

/// Routes that lie within and beside each other, so that leaving one of them shows.
static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let routes = [
        ("/guacamole/", "/guacamole/"),
        ("/guacamole/api/", "/guacamole/api/"),
        ("/desk/", "/guacamole/"),
        ("/desk/admin/", "/manager/"),
        ("/open/", "/"),
    ];
    let mut text = "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n".to_owned();
    for (path, upstream_path) in routes {
        text += &format!(
            "[[route]]\npath = \"{path}\"\nupstream = \"http://127.0.0.1:1{upstream_path}\"\n"
        );
    }
    configuration::parse(&text).expect("a good configuration").config
});

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(asked) = Target::parse(text) else { return };
    assert_eq!(
        format!("{}{}", asked.path, asked.query),
        text,
        "the bytes that go on are those that came"
    );
    let seen = String::from_utf8(asked.seen.to_vec()).expect("checked when it was parsed");
    let Some(route) = CONFIG.route("localhost", &seen) else { return };
    if !asked.agrees_on(&route.path) {
        return;
    }
    let mut sent = Vec::new();
    target::write_mapped(asked.path, &route.path, &route.upstream_path, &mut sent);
    for habit in HABITS {
        let Some(served) = habit.serves(&sent) else { continue };
        let shown = served.escape_ascii();
        assert!(target::is_under(&served, &route.upstream_path), "{shown} with {habit:?}");
        // Nor is it what another route, with rules of its own, is for.
        let served = String::from_utf8_lossy(&served);
        let inside = served.strip_prefix(route.upstream_path.trim_end_matches('/')).unwrap_or("");
        let public = format!("{}{inside}", route.path.trim_end_matches('/'));
        let other = CONFIG.route("localhost", &public).expect("a route for what is served");
        assert_eq!(other.name, route.name, "{shown} with {habit:?}");
    }
}

//! Which route a request gets, against a model that looks at all of them.

use proptest::prelude::*;

use super::*;
use crate::config::{Host, Route};

fn config(routes: &[(Option<&str>, &str)]) -> crate::config::Config {
    let mut text = String::from("[[listener]]\naddress = \"127.0.0.1:80\"\nservice = \"http\"\n");
    for (host, path) in routes {
        text.push_str("[[route]]\nupstream = \"http://a\"\n");
        if let Some(host) = host {
            text.push_str(&format!("host = \"{host}\"\n"));
        }
        text.push_str(&format!("path = \"{path}\"\n"));
    }
    accept(&text).config
}

fn name<'c>(config: &'c crate::config::Config, host: &str, path: &str) -> Option<&'c str> {
    config.route(host, path).map(|route| route.name.as_str())
}

#[test]
fn the_most_specific_route_wins_wherever_it_stands() {
    let routes = [
        (None, "/"),
        (Some("*.example.org"), "/"),
        (Some("desk.example.org"), "/guacamole/"),
        (Some("desk.example.org"), "/guacamole/api"),
        (None, "/guacamole/api/deep/"),
    ];
    let forwards = config(&routes);
    let mut backwards = routes;
    backwards.reverse();
    let backwards = config(&backwards);
    for (host, path, expected) in [
        ("desk.example.org", "/guacamole", "desk.example.org/guacamole/"),
        ("DESK.example.org", "/guacamole/", "desk.example.org/guacamole/"),
        ("desk.example.org.", "/guacamole/x", "desk.example.org/guacamole/"),
        ("desk.example.org", "/guacamole/api", "desk.example.org/guacamole/api/"),
        ("desk.example.org", "/guacamole/apis", "desk.example.org/guacamole/"),
        ("desk.example.org", "/guacamole/api/deep/x", "desk.example.org/guacamole/api/"),
        ("desk.example.org", "/guacamolex", "*.example.org/"),
        ("other.example.org", "/guacamole/", "*.example.org/"),
        ("a.b.example.org", "/", "*/"),
        ("", "/guacamole/api/deep", "*/guacamole/api/deep/"),
    ] {
        assert_eq!(name(&forwards, host, path), Some(expected), "{host} {path}");
        assert_eq!(name(&backwards, host, path), Some(expected), "{host} {path}");
    }
}

#[test]
fn what_no_route_covers_has_none() {
    let config = config(&[(Some("desk.example.org"), "/guacamole/")]);
    assert_eq!(name(&config, "desk.example.org", "/"), None);
    assert_eq!(name(&config, "desk.example.org", ""), None);
    assert_eq!(name(&config, "desk.example.org", "guacamole"), None);
    assert_eq!(name(&config, "desk.example.org", "/Guacamole/"), None);
    assert_eq!(name(&config, "evil", "/guacamole/"), None);
    assert!(config.knows_host("Desk.Example.Org."));
    assert!(!config.knows_host("evil"));
}

/// The same question asked of every route by segments, in the worst way.
fn model<'r>(routes: &'r [Route], host: &str, path: &str) -> Option<&'r Route> {
    let segments = |path: &str| -> Vec<String> {
        path.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect()
    };
    let asked = segments(path);
    let labels: Vec<&str> = host.split('.').collect();
    routes
        .iter()
        .filter(|route| match &route.host {
            None => true,
            Some(Host::Exact(name)) => name.split('.').collect::<Vec<_>>() == labels,
            Some(Host::Wildcard(parent)) => {
                let parent: Vec<&str> = parent.split('.').skip(1).collect();
                labels.len() == parent.len() + 1 && labels[1..] == parent[..]
            }
        })
        .filter(|route| asked.starts_with(&segments(&route.path)))
        .max_by_key(|route| {
            let class = match route.host {
                Some(Host::Exact(_)) => 2,
                Some(Host::Wildcard(_)) => 1,
                None => 0,
            };
            (class, segments(&route.path).len())
        })
}

proptest! {
    #[test]
    fn matching_agrees_with_the_model(
        routes in proptest::collection::btree_set((0..5_usize, "(/[ab]{1,2}){0,3}/"), 1..12),
        host in "(a|b|x)(\\.(a|b)){0,2}",
        path in "(/[ab]{1,2}){0,4}/?",
    ) {
        const HOSTS: [Option<&str>; 5] = [None, Some("a"), Some("a.b"), Some("*.b"), Some("*.a.b")];
        let routes: Vec<(Option<&str>, &str)> =
            routes.iter().map(|(host, path)| (HOSTS[*host], path.as_str())).collect();
        let config = config(&routes);
        let path = if path.is_empty() { "/" } else { &path };
        let expected = model(&config.routes, &host, path).map(|route| &route.name);
        prop_assert_eq!(config.route(&host, path).map(|route| &route.name), expected);
    }
}

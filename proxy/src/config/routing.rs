//! From a host and a path to a route. The order is decided once, when the file is read; at run time
//! it is a scan.

use std::cmp::{Ordering, Reverse};

use super::model::{Config, Host, Route};

impl Config {
    /// The route for a request: the most specific host wins (exact, wildcard, any), then the
    /// longest path.
    ///
    /// `host` is the Host field without its port, in any case, with or without the root's dot;
    /// `path` is the path as Tomcat would see it, without query. None: no route, to be answered
    /// 404.
    #[must_use]
    pub fn route(&self, host: &str, path: &str) -> Option<&Route> {
        find(&self.routes, host, path)
    }

    /// Whether two names are served with the same certificate. A request for one must not come over a connection that
    /// was made for the other (RFC 9110 §7.4).
    #[must_use]
    pub fn is_same_site(&self, one: &str, other: &str) -> bool {
        self.site(one) == self.site(other)
    }

    /// Index of the certificate for `host`; the default one has what nobody else has. Exact names come first.
    fn site(&self, host: &str) -> usize {
        let host = without_root(host);
        let parent = host.find('.').map_or("", |at| &host[at..]);
        let find = |wanted: &dyn Fn(&str) -> bool| {
            self.certificates.iter().position(|site| site.names.iter().any(|name| wanted(name)))
        };
        find(&|name| name.eq_ignore_ascii_case(host))
            .or_else(|| {
                let is_parent = |own: &str| !parent.is_empty() && own.eq_ignore_ascii_case(parent);
                find(&|name| name.strip_prefix('*').is_some_and(is_parent))
            })
            .unwrap_or(0)
    }

    /// Whether any route could serve `host`; a redirect must not repeat a host that is not ours.
    #[must_use]
    pub fn knows_host(&self, host: &str) -> bool {
        let host = without_root(host);
        self.routes.iter().any(|route| route.host.as_ref().is_none_or(|own| own.matches(host)))
    }
}

impl Host {
    /// Whether `name` (without port) is meant, in any case. A wildcard takes exactly one label.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(own) => own.eq_ignore_ascii_case(name),
            Self::Wildcard(parent) => match name.find('.') {
                Some(at) if at > 0 => {
                    name.get(at..).is_some_and(|rest| rest.eq_ignore_ascii_case(parent))
                }
                _ => false,
            },
        }
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(parent) => write!(f, "*{parent}"),
        }
    }
}

impl Route {
    /// Whether `path` lies under this route's prefix, by whole segments.
    #[must_use]
    pub fn covers(&self, path: &str) -> bool {
        path.starts_with(&self.path) || self.path.strip_suffix('/') == Some(path)
    }
}

/// Puts routes in the order [`Config::route`] scans.
pub(super) fn sort(routes: &mut [Route]) {
    routes.sort_by(order);
}

fn order(one: &Route, other: &Route) -> Ordering {
    let key = |route: &Route| {
        let class = match route.host {
            Some(Host::Exact(_)) => 0,
            Some(Host::Wildcard(_)) => 1,
            None => 2,
        };
        (class, Reverse(route.path.len()))
    };
    // The name only makes the order independent of the file's.
    key(one).cmp(&key(other)).then_with(|| one.name.cmp(&other.name))
}

fn without_root(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

fn find<'r>(routes: &'r [Route], host: &str, path: &str) -> Option<&'r Route> {
    let host = without_root(host);
    routes
        .iter()
        .find(|route| route.covers(path) && route.host.as_ref().is_none_or(|own| own.matches(host)))
}

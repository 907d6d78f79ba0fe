//! What stands around a fault: a gateway, an upstream that keeps account behind a network that breaks, a bystander, and
//! what the gateway holds when nothing is the matter.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tlsplice_fixtures::pattern::Hash;
use tlsplice_tests::bystander::Bystander;
use tlsplice_tests::client::{Client, Response};
use tlsplice_tests::fault::FaultProxy;
use tlsplice_tests::gateway::{Config, Gateway};
use tlsplice_tests::ledger::{Ledger, content};
use tlsplice_tests::wait_for;

/// What is random follows it.
pub(crate) const SEED: u64 = 0x005e_ed0f_fa17;

/// How much more memory than before a gateway may hold when a fault is over: buffers that workers keep for the next use,
/// and what the allocator does not give back.
const KEPT_BYTES: usize = 32 << 20;

/// How much of the processor an idle gateway may have within [`IDLE`].
const IDLE_TIME: Duration = Duration::from_millis(50);

const IDLE: Duration = Duration::from_secs(1);

/// A key of upstreams: what is idle is soon closed, so that nothing is left to be counted.
const KEEP_ALIVE: &str = "keep_alive_timeout = \"200ms\"\n";

pub(crate) struct Stage {
    pub(crate) gateway: Gateway,
    pub(crate) origin: Ledger,
    /// In front of the origin, for all but `/calm`.
    pub(crate) proxy: FaultProxy,
    before: Holdings,
}

/// Ends of pipes that a worker may keep for the next use (`PIPES_KEPT_MAX` of the gateway).
const PIPE_ENDS_KEPT: usize = 2 * 16;

#[derive(Clone, Copy, Debug)]
struct Holdings {
    /// Without pipes.
    descriptors: usize,
    pipe_ends: usize,
    bytes: usize,
}

impl Holdings {
    fn of(gateway: &Gateway) -> Self {
        let pipe_ends = gateway.pipe_ends();
        Self {
            descriptors: gateway.descriptors() - pipe_ends,
            pipe_ends,
            bytes: gateway.resident_bytes(),
        }
    }
}

impl Stage {
    pub(crate) fn start() -> Self {
        Self::with("", "")
    }

    /// With these keys of the upstream and of `[limits]`.
    pub(crate) fn with(upstream: &str, limits: &str) -> Self {
        let config = Config::default().with_limits(limits);
        Self::of(config, upstream, Gateway::start)
    }

    /// With a configuration to which the upstreams and routes of the stage are added. One worker serves all, so that
    /// nobody is out of the way of a fault.
    pub(crate) fn of(
        config: Config,
        upstream: &str,
        start: impl FnOnce(&Config) -> Gateway,
    ) -> Self {
        let origin = Ledger::start();
        let proxy = FaultProxy::start(origin.address(), SEED);
        let gateway = start(&Self::config(config, upstream, proxy.address(), origin.address()));
        // What is made on first use is there from now on.
        for address in [gateway.https, gateway.plain()] {
            for target in ["/calm", "/", "/bytes/3000000"] {
                let mut client = if address == gateway.https {
                    Client::tls(address)
                } else {
                    Client::plain(address)
                };
                assert_eq!(client.get(target).status, 200);
            }
        }
        let before = settled(&gateway);
        Self { gateway, origin, proxy, before }
    }

    pub(crate) fn config(
        config: Config,
        upstream: &str,
        faulty: SocketAddr,
        calm: SocketAddr,
    ) -> Config {
        let faulty = if upstream.contains("keep_alive_timeout") {
            format!("\"http://{faulty}\"\n{upstream}")
        } else {
            format!("\"http://{faulty}\"\n{KEEP_ALIVE}{upstream}")
        };
        config
            .with_workers(1)
            .with("[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"http\"\n")
            .with(&format!(
                "[[upstream]]\nname = \"calm\"\nendpoints = \"http://{calm}\"\n{KEEP_ALIVE}\n\
                 [[upstream]]\nname = \"faulty\"\nendpoints = {faulty}\n\
                 [[route]]\npath = \"/calm\"\nupstream = \"calm\"\n[[route]]\nupstream = \"faulty\"\n"
            ))
    }

    /// Clients with and without TLS: on the way without, bulk is spliced here.
    pub(crate) fn clients(&self) -> [Client; 2] {
        [Client::tls(self.gateway.https), Client::plain(self.gateway.plain())]
    }

    pub(crate) fn bystander(&self) -> Bystander {
        Bystander::start(self.gateway.https, "/calm", self.origin.address())
    }

    /// The next request succeeds at once, with whole bodies both ways, and everything that was held is given back.
    pub(crate) fn recovered(&self, name: &str) {
        for (index, client) in self.clients().iter_mut().enumerate() {
            expect_whole(client, "/bytes/300000");
            expect_whole(client, "/chunks/300000");
            let key = format!("{name}-after-{index}");
            let response = upload(client, &key, 300_000);
            assert_eq!(response.status, 200);
            assert_eq!(response.text(), hash(300_000));
            assert_eq!(self.origin.effects(&key), 1);
        }
        self.gives_back();
        self.is_idle();
        assert_eq!(self.origin.doubled(), Vec::<String>::new(), "nothing was done twice");
    }

    /// Descriptors and pipes are what they were before the fault, and so is memory but for what is kept.
    pub(crate) fn gives_back(&self) {
        let before = self.before;
        wait_for(&format!("the return to {before:?}"), || {
            let now = Holdings::of(&self.gateway);
            let is_back = now.descriptors <= before.descriptors
                && now.pipe_ends <= before.pipe_ends + PIPE_ENDS_KEPT
                && now.bytes <= before.bytes + KEPT_BYTES;
            if !is_back {
                std::thread::sleep(Duration::from_millis(100));
            }
            is_back.then_some(())
        });
    }

    /// It does next to nothing when nobody asks.
    pub(crate) fn is_idle(&self) {
        wait_for("idleness", || {
            let begun = self.gateway.processor_time();
            std::thread::sleep(IDLE);
            (self.gateway.processor_time() - begun <= IDLE_TIME).then_some(())
        });
    }

    /// Waiting costs next to nothing: what a bystander costs is the same before and after.
    pub(crate) fn waits_idly(&self) {
        wait_for("a wait that costs next to nothing", || {
            let begun = self.gateway.processor_time();
            std::thread::sleep(IDLE);
            (self.gateway.processor_time() - begun <= IDLE / 3).then_some(())
        });
    }

    /// The line of the access log about this target; there must be one only.
    pub(crate) fn told_once(&self, target: &str) -> Value {
        let line = self.gateway.wait_for_access(|line| line["target"] == target);
        let lines = self.gateway.access_log();
        let count = lines.iter().filter(|line| line["target"] == target).count();
        assert_eq!(count, 1, "{target} is told of once");
        line
    }

    /// The same, and a warning beside it: whose fault it was, and why.
    pub(crate) fn told_as(&self, target: &str, fault: &str, reason: &str) {
        let line = self.told_once(target);
        assert_eq!(line["fault"], fault, "{line}");
        let said = line["reason"].as_str().unwrap_or_default();
        assert!(said.contains(reason), "{line}");
    }
}

/// Holdings once they do not change any more.
fn settled(gateway: &Gateway) -> Holdings {
    let mut before = Holdings::of(gateway);
    wait_for("a gateway at rest", || {
        // Idle upstream connections are closed meanwhile.
        std::thread::sleep(Duration::from_millis(1300));
        let now = Holdings::of(gateway);
        let is_settled = (now.descriptors, now.pipe_ends) == (before.descriptors, before.pipe_ends);
        before = now;
        is_settled.then_some(())
    });
    before
}

/// The hash of a body of this length.
pub(crate) fn hash(len: usize) -> String {
    let mut hash = Hash::new();
    hash.update(&content(len));
    hash.finish()
}

/// Asks for a body of the pattern and compares.
pub(crate) fn expect_whole(client: &mut Client, target: &str) {
    let response = client.get(target);
    assert_eq!(response.status, 200, "{target}");
    let len = response.body.len();
    let wanted = target.rsplit('/').next().and_then(|count| count.parse().ok());
    assert_eq!(Some(len), wanted, "{target}");
    assert!(response.body == content(len), "{target}: other bytes");
}

/// The head of a request that has an effect.
pub(crate) fn post(key: &str, len: usize) -> String {
    format!("POST /effect/{key} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len}\r\n\r\n")
}

/// Has an effect with a body of the pattern.
pub(crate) fn upload(client: &mut Client, key: &str, len: usize) -> Response {
    client.send(post(key, len));
    client.send(content(len));
    client.response()
}

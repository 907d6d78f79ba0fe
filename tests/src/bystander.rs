use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::client::Client;

/// Connections, so that with some luck each worker has one of them.
const CONNECTIONS: usize = 4;

/// How often a request is due. A gateway that stands still is late for all that would have been asked meanwhile.
const PERIOD: Duration = Duration::from_millis(10);

/// How many requests tell what is usual.
const USUAL: usize = 60;

/// What is allowed on top: machines that run tests have other things to do.
const SLACK: Duration = Duration::from_millis(250);

/// Somebody whom a fault does not concern: asks over open TLS connections all the time.
pub struct Bystander {
    usual: Duration,
    is_over: Arc<AtomicBool>,
    asking: Asking,
    /// Asks the origin itself, which shows how slow the machine is meanwhile.
    control: Asking,
}

type Asking = JoinHandle<Result<Vec<Duration>, String>>;

fn quantile(mut sample: Vec<Duration>, hundredths: usize) -> Duration {
    sample.sort_unstable();
    sample.get(sample.len().saturating_sub(1) * hundredths / 100).copied().unwrap_or_default()
}

impl Bystander {
    /// Finds out what is usual, and goes on asking for `target` at the gateway, and at the origin for comparison.
    ///
    /// # Panics
    /// When the gateway does not serve.
    #[must_use]
    pub fn start(address: SocketAddr, target: &str, origin: SocketAddr) -> Self {
        let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| Client::tls(address)).collect();
        let usual = ask(&mut clients, target, |count| count < USUAL).expect("it serves");
        let usual = quantile(usual, 99);
        let is_over = Arc::new(AtomicBool::new(false));
        let go_on = |mut clients: Vec<Client>| {
            let (stop, target) = (Arc::clone(&is_over), target.to_owned());
            thread::spawn(move || ask(&mut clients, &target, |_| !stop.load(Ordering::Relaxed)))
        };
        let asking = go_on(clients);
        let control = go_on((0..CONNECTIONS).map(|_| Client::plain(origin)).collect());
        Self { usual, is_over, asking, control }
    }

    /// Ends it: no request failed, and nine of ten took no longer than three times of what is usual and of what the origin
    /// itself took meanwhile, and some slack.
    ///
    /// # Panics
    /// When that is not so.
    pub fn finish(self) {
        self.is_over.store(true, Ordering::Relaxed);
        let took = |asking: Asking| {
            let took = asking.join().expect("it does not panic");
            took.unwrap_or_else(|error| panic!("a connection nobody touched: {error}"))
        };
        let (took, control) = (took(self.asking), quantile(took(self.control), 90));
        let bound = (self.usual + control) * 3 + SLACK;
        let (count, most) = (took.len(), quantile(took, 90));
        println!(
            "bystander: {count} requests, 9 of 10 within {most:?}; usual: {:?}; origin: {control:?}",
            self.usual
        );
        assert!(most <= bound, "a connection nobody touched waits {most:?}, more than {bound:?}");
    }
}

fn ask(
    clients: &mut [Client],
    target: &str,
    go_on: impl Fn(usize) -> bool,
) -> Result<Vec<Duration>, String> {
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut took = Vec::new();
    for count in 0.. {
        if !go_on(count) {
            break;
        }
        let client = &mut clients[count % CONNECTIONS];
        let begun = Instant::now();
        let answer = client.try_send(&request).and_then(|()| client.try_response());
        let elapsed = begun.elapsed();
        match answer {
            Ok(response) if response.status == 200 => {}
            Ok(response) => return Err(format!("{} to request {count}", response.status)),
            Err(error) => return Err(format!("{error} at request {count}")),
        }
        // Whoever would have asked meanwhile would have waited for the rest of it.
        let mut waited = elapsed;
        loop {
            took.push(waited);
            let Some(rest) = waited.checked_sub(PERIOD) else { break };
            waited = rest;
        }
        thread::sleep(PERIOD.saturating_sub(elapsed));
    }
    Ok(took)
}

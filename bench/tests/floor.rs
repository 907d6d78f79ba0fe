//! The relay that bars are compared with does what gateways are asked for there.

use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use tlsplice_bench::certificate::Certificates;
use tlsplice_bench::floor::{self, Addresses, FLOORS, Floor};
use tlsplice_bench::load::{Client, Front, Fronts, Group, Work};
use tlsplice_bench::origin::Origin;
use tlsplice_fixtures::free_port;

#[test]
fn requests_messages_and_bulk_pass_and_tls_is_ended() {
    FLOORS.into_iter().for_each(passes);
}

fn passes(floor: Floor) {
    let directory = tempfile::tempdir().expect("a directory");
    let certificates = Certificates::make(directory.path()).expect("certificates");
    let origin = Origin::start(None).expect("an origin");
    let address = || SocketAddr::from(([127, 0, 0, 1], free_port().expect("a port")));
    let addresses = Addresses { plain: address(), tls: address(), origin: origin.address };
    let files = certificates.ecdsa.clone();
    // It ends with the process.
    thread::spawn(move || floor::run(floor, addresses, &files.certificate, &files.key));
    let fronts = Fronts { tls: addresses.tls, rsa: addresses.tls, plain: addresses.plain };
    let started = Instant::now();
    while [addresses.plain, addresses.tls].iter().any(|port| TcpStream::connect(port).is_err()) {
        assert!(started.elapsed() < Duration::from_secs(10), "the relay does not listen");
        thread::sleep(Duration::from_millis(10));
    }
    let get = Work::Get { path: "/small".to_owned() };
    let (download, upload) = (
        Work::Download { bytes: 1_000_000_000, bytes_per_second: None },
        Work::Upload { bytes: 1_000_000_000 },
    );
    // Bulk is counted in bytes: where it is spliced, more than what passes before that.
    let upload_min = if floor == Floor::Epoll { 20_000_000 } else { 1_000_000 };
    for (work, front, units_min) in [
        (get.clone(), Front::Plain, 1),
        (get, Front::Tls, 1),
        (Work::Echo { bytes: 300 }, Front::Plain, 1),
        (Work::Echo { bytes: 4096 }, Front::Tls, 1),
        (download, Front::Plain, 1_000_000),
        (upload, Front::Plain, upload_min),
    ] {
        let group = Group { work: work.clone(), connections: 4, front };
        let mut client = Client::open(&[group], fronts).expect("connections");
        let tally = client.run(Duration::from_millis(300)).expect("a run");
        assert!(tally[0].units >= units_min, "{floor:?} {work:?} {front:?}: {}", tally[0].units);
    }
}

use std::io;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use crate::origin::{Connection, Origin};
use crate::pump::Random;

/// An upstream that sends each body back while it still comes, in pieces and chunks of its own and with stalls.
///
/// # Panics
/// As [`Origin::start`].
#[must_use]
pub fn echoing(random: &mut Random) -> Origin {
    let random = Mutex::new(random.fork());
    Origin::start(move |connection| {
        let mut random = random.lock().map_err(|_| io::ErrorKind::Other)?.fork();
        loop {
            let head = connection.request()?;
            match number_in(&head, "content-length") {
                Some(len) => echo(connection, len, &mut random)?,
                None => echo_chunked(connection, &mut random)?,
            }
        }
    })
}

fn echo(connection: &mut Connection, len: usize, random: &mut Random) -> io::Result<()> {
    connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n"))?;
    let mut left = len;
    while left > 0 {
        let piece = connection.take(random.up_to(200_000).min(left))?;
        if random.up_to(64) == 1 {
            thread::sleep(Duration::from_millis(3));
        }
        connection.send(&piece)?;
        left -= piece.len();
    }
    Ok(())
}

fn echo_chunked(connection: &mut Connection, random: &mut Random) -> io::Result<()> {
    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    loop {
        let line = connection.until(b"\r\n")?;
        let digits = String::from_utf8_lossy(&line[..line.len() - 2]).into_owned();
        let size = usize::from_str_radix(&digits, 16).map_err(io::Error::other)?;
        let data = connection.take(size + 2)?;
        if size == 0 {
            return connection.send("0\r\n\r\n");
        }
        let mut rest = &data[..size];
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(random.up_to(150_000).min(rest.len()));
            connection
                .send([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat())?;
            rest = more;
        }
    }
}

/// The number in a field of a head.
#[must_use]
pub fn number_in(head: &str, name: &str) -> Option<usize> {
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.find(|(found, _)| found.eq_ignore_ascii_case(name))?.1.parse().ok()
}

use std::io;
use std::net::Shutdown;
use std::rc::Rc;
use std::time::Duration;

use tlsplice::buffers::Buffers;
use tlsplice::message::chunked::{self, Decoder};
use tlsplice::message::framing::Framing;
use tlsplice::relay::flow::{Flow, Next, Stop};
use tlsplice::relay::{self, Pace, Sink, Source};
use tlsplice::stream::{Fill, Reader, Writer};
use tlsplice::timers::{Activity, Timers, Watched};
use tlsplice::transport::Transport as _;
use tlsplice::transport::double::{Direction, Double, Mood, Step, pair};

use crate::input::Input;

/// Never reached: no time passes here.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a call that may move up to `most` bytes comes to.
fn result(input: &mut Input<'_>, most: usize) -> io::Result<usize> {
    const ERRORS: [i32; 8] = [
        libc::EINVAL,
        libc::EIO,
        libc::ECONNRESET,
        libc::EPIPE,
        libc::EBADMSG,
        libc::ENOMEM,
        libc::EINTR,
        libc::EAGAIN,
    ];
    match input.byte() {
        0..=120 => Ok(most),
        121..=200 => Ok(usize::from(input.word()).clamp(1, most)),
        201..=225 => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
        226..=240 => Err(io::Error::from_raw_os_error(libc::EINTR)),
        241 => Ok(0),
        other => Err(io::Error::from_raw_os_error(ERRORS[usize::from(other) % ERRORS.len()])),
    }
}

pub(crate) fn flow(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let left = u64::from(input.word()) * if input.bit() { 1 } else { 1000 };
    // Millions of tiny steps would show nothing new.
    let capacity = usize::from(input.word()) + 1 + usize::try_from(left / 5_000).expect("small");
    let mut flow = Flow::new(left, capacity);
    let (mut entered, mut arrived, mut turn) = (0_u64, 0_u64, 0_u64);
    let mut has_waited = false;
    // Once the decisions are used up each call moves all it can, so that it comes to its end.
    let steps_max = bytes.len() as u64 * 2 + 8 * (left / capacity as u64 + left / (1 << 20) + 2);
    for _ in 0..steps_max {
        let next = flow.next();
        let waits = matches!(next, Next::AwaitSource | Next::AwaitSink | Next::Yield);
        assert!(!(waits && has_waited), "two waits without a call between them");
        has_waited = waits;
        let outcome = match next {
            Next::Fill(most) => {
                assert!(most > 0 && most <= capacity && most as u64 <= left - entered);
                assert_eq!(entered, arrived, "a pipe is filled when it is empty");
                let result = result(&mut input, most);
                let count = *result.as_ref().unwrap_or(&0) as u64;
                entered += count;
                turn += count;
                assert!(turn <= (1 << 20) + capacity as u64, "others get their turn");
                flow.on_filled(result)
            }
            Next::Drain(held) => {
                assert_eq!(held as u64, entered - arrived, "exactly what is in the pipe");
                let result = result(&mut input, held);
                arrived += *result.as_ref().unwrap_or(&0) as u64;
                flow.on_drained(result)
            }
            Next::AwaitSource => {
                flow.on_source_ready();
                Ok(())
            }
            Next::AwaitSink => {
                flow.on_sink_ready();
                Ok(())
            }
            Next::Yield => {
                turn = 0;
                flow.on_turn();
                Ok(())
            }
            Next::Done => {
                assert_eq!((entered, arrived), (left, left));
                return;
            }
        };
        assert_eq!(flow.left(), left - entered);
        assert_eq!(flow.is_drained(), entered == arrived);
        if let Err(stop) = outcome {
            assert!(!matches!(stop, Stop::Unsuitable | Stop::Truncated) || flow.is_drained());
            return;
        }
    }
    panic!("it spins: {arrived} of {left} bytes");
}

/// Both halves of one end, without TLS.
fn halves(
    timers: &Rc<Timers<Double>>,
    buffers: &Rc<Buffers>,
    end: &Double,
) -> (Reader<Double>, Writer<Double>, Rc<Watched<Double>>) {
    let watch = Rc::new(timers.watch(end.clone(), Activity::Exchange));
    (
        Reader::plain(Rc::clone(&watch), end.clone(), Rc::clone(buffers)),
        Writer::plain(Rc::clone(&watch), end.clone(), Rc::clone(buffers), TIMEOUT),
        watch,
    )
}

/// Steps for the coming calls of one direction.
fn script(input: &mut Input<'_>) -> Vec<Step> {
    use io::ErrorKind::{ConnectionReset, Interrupted, WouldBlock};
    let count = usize::from(input.byte() & 31);
    let step = |byte| match byte {
        0..=199 => Step::AtMost(usize::from(byte) * usize::from(byte) / 8 + 1),
        200..=225 => Step::Fail(Interrupted),
        226..=252 => Step::Fail(WouldBlock),
        _ => Step::Fail(ConnectionReset),
    };
    (0..count).map(|_| step(input.byte())).collect()
}

/// What a source of this framing carries at the front of `wire`: its data, and the bytes it takes; None: it is cut off or
/// malformed, and then the data before that.
fn expected(framing: Framing, wire: &[u8]) -> (Vec<u8>, Option<usize>) {
    match framing {
        Framing::None => (Vec::new(), Some(0)),
        Framing::Length(length) => {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            match wire.get(..length) {
                Some(data) => (data.to_vec(), Some(length)),
                None => (wire.to_vec(), None),
            }
        }
        Framing::UntilClose => (wire.to_vec(), Some(wire.len())),
        Framing::Chunked => {
            let (mut decoder, mut data) = (Decoder::default(), Vec::new());
            for (at, &byte) in wire.iter().enumerate() {
                let mut one = [byte];
                let Ok(found) = decoder.dechunk(&mut one) else { return (data, None) };
                data.extend_from_slice(&one[..found.data_len]);
                if found.ended {
                    return (data, Some(at + 1));
                }
            }
            (data, None)
        }
    }
}

pub(crate) fn pump(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choices = input.byte();
    let amount = input.word();
    let sink = if choices & 4 == 4 { Sink::Chunked } else { Sink::Raw };
    let (received, sent) = (script(&mut input), script(&mut input));
    let (one, other) = (input.byte(), input.byte());
    let mut wire = input.rest().to_vec();
    // Large bodies are spliced.
    if choices & 8 == 8 {
        let noise = (0..u64::from(amount) * 4)
            .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8);
        let body: Vec<u8> = noise.collect();
        let head = if choices & 3 == 2 && !body.is_empty() {
            let head = chunked::chunk_head(body.len() as u64);
            [head.as_bytes(), &body, chunked::CHUNK_TAIL].concat()
        } else {
            body
        };
        wire = [head, wire].concat();
    }
    let framing = match choices & 3 {
        0 => Framing::None,
        1 if amount == 0 => Framing::None,
        1 if choices & 8 == 8 => Framing::Length(u64::from(amount) * 4),
        1 => Framing::Length(u64::from(amount)),
        2 => Framing::Chunked,
        _ => Framing::UntilClose,
    };
    let (data, used) = expected(framing, &wire);
    let is_rough = choices & 16 == 16;
    let resets = [&received, &sent]
        .into_iter()
        .flatten()
        .any(|step| *step == Step::Fail(io::ErrorKind::ConnectionReset));

    let capacity = wire.len() * 8 + 4096;
    let ((source, near), (far, _out)) = (pair(capacity), pair(capacity));
    let (timers, buffers) = (Timers::new(), Rc::new(Buffers::default()));
    let (mut from, _writer, _watch) = halves(&timers, &buffers, &near);
    let (_reader, mut to, _other_watch) = halves(&timers, &buffers, &far);
    if !wire.is_empty() {
        assert_eq!(source.try_send(&wire).expect("there is room"), wire.len());
    }
    source.shutdown(Shutdown::Write);
    near.script(Direction::Receive, received);
    far.script(Direction::Send, sent);
    if is_rough {
        near.set_mood(Mood::Rough(u64::from(one) + 1));
        far.set_mood(Mood::Rough(u64::from(other) + 1));
    }
    if choices & 32 == 32 {
        near.allow_splicing();
        far.allow_splicing();
    }
    let bytes_max = (choices & 64 == 64).then_some(u64::from(one) * 64);
    let is_short_enough = bytes_max.is_none_or(|most| data.len() as u64 <= most);

    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let (moved, rest) = tokio::task::LocalSet::new().block_on(&runtime, async {
        let body = Source::new(framing);
        let moved =
            relay::pump(&mut from, &mut to, body, sink, Pace::Idle(TIMEOUT), bytes_max).await;
        let rest = if moved.is_ok() { rest_of(&mut from).await } else { Some(Vec::new()) };
        (moved, rest)
    });
    let arrived = far.sent();
    match moved {
        Ok(count) => {
            let used = used.expect("a body that is cut off is not complete");
            assert!(is_short_enough, "{count} bytes of at most {bytes_max:?}");
            assert_eq!(count, data.len() as u64);
            match sink {
                Sink::Raw => {
                    assert!(arrived == data, "{} bytes instead of {}", arrived.len(), data.len())
                }
                Sink::Chunked => {
                    let (found, len) = expected(Framing::Chunked, &arrived);
                    assert!(found == data && len == Some(arrived.len()), "what leaves is whole");
                }
            }
            if let Some(rest) = rest {
                assert!(rest == wire[used..], "what stands behind the body is still there");
            }
        }
        Err(error) => {
            assert!(used.is_none() || resets || !is_short_enough, "{error}");
            match sink {
                Sink::Raw => assert!(data.starts_with(&arrived), "nothing but the beginning"),
                Sink::Chunked => {
                    let (found, len) = expected(Framing::Chunked, &arrived);
                    assert!(data.starts_with(&found) && len.is_none(), "it does not look complete");
                }
            }
        }
    }
}

/// Everything up to the end; None when that cannot be read.
async fn rest_of(from: &mut Reader<Double>) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        all.extend_from_slice(from.filled());
        from.consume(from.filled().len());
        match from.fill().await {
            Ok(Fill::Data) => {}
            Ok(Fill::End(_)) => return Some(all),
            Err(_) => return None,
        }
    }
}

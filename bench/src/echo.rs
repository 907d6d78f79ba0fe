//! WebSocket frames, as far as an echo needs them: binary messages in one frame. Pure.

/// A client's binary message of `length` bytes, masked.
#[must_use]
pub fn masked(length: usize) -> Vec<u8> {
    let mask = [0x5a, 0xc3, 0x0f, 0x99];
    let mut frame = header(length, 0x80);
    frame.extend(mask);
    frame.extend((0..length).map(|at| b'm' ^ mask[at % 4]));
    frame
}

/// Length on the wire of a server's message of `length` bytes.
#[must_use]
pub fn unmasked_length(length: usize) -> usize {
    header(length, 0).len() + length
}

fn header(length: usize, mask_bit: u8) -> Vec<u8> {
    let mut header = vec![0x82];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => header.push(mask_bit | short),
        (_, Ok(medium)) => {
            header.push(mask_bit | 126);
            header.extend(medium.to_be_bytes());
        }
        _ => {
            header.push(mask_bit | 127);
            header.extend((length as u64).to_be_bytes());
        }
    }
    header
}

/// Sends back what comes, unmasked, without waiting for whole messages.
#[derive(Debug, Default)]
pub struct Echo {
    header: Vec<u8>,
    mask: [u8; 4],
    left: usize,
    position: usize,
}

impl Echo {
    /// Takes bytes of frames; appends the echo to `output`. The bytes are unmasked in place.
    pub fn on_bytes(&mut self, bytes: &mut [u8], output: &mut Vec<u8>) {
        let mut at = 0;
        while at < bytes.len() {
            if self.left == 0 {
                self.header.push(bytes[at]);
                at += 1;
                self.on_header(output);
                continue;
            }
            let take = self.left.min(bytes.len() - at);
            let payload = &mut bytes[at..at + take];
            for (offset, byte) in payload.iter_mut().enumerate() {
                *byte ^= self.mask[(self.position + offset) % 4];
            }
            output.extend_from_slice(payload);
            self.position += take;
            self.left -= take;
            at += take;
        }
    }

    fn on_header(&mut self, output: &mut Vec<u8>) {
        let Some(code) = self.header.get(1).map(|byte| byte & 0x7f) else { return };
        let extended = match code {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if self.header.len() < 2 + extended + 4 {
            return;
        }
        let long =
            self.header[2..2 + extended].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        let length = if extended == 0 { usize::from(code) } else { long };
        self.mask.copy_from_slice(&self.header[2 + extended..]);
        output.extend(header(length, 0));
        self.left = length;
        self.position = 0;
        self.header.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_every_length_form_come_back_whole_however_they_are_cut() {
        for length in [1, 125, 126, 300, 65_535, 65_536, 70_000] {
            for cut in [1, 7, 4096] {
                let mut echo = Echo::default();
                let mut output = Vec::new();
                for piece in [masked(length), masked(length)].concat().chunks_mut(cut) {
                    echo.on_bytes(piece, &mut output);
                }
                let mut one = header(length, 0);
                one.extend(vec![b'm'; length]);
                assert_eq!(output, [one.clone(), one].concat(), "{length} cut by {cut}");
                assert_eq!(output.len(), 2 * unmasked_length(length));
            }
        }
    }
}

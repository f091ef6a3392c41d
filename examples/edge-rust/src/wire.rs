//! Frames and messages (docs/protocol.md, "Over QUIC"; protos/cloudhub/v1/edge.proto).

use std::error::Error;
use std::io;

/// Any; it may go from task to task.
pub type Fault = Box<dyn Error + Send + Sync>;

pub const PREFIX: &[u8] = b"msg";
const HEADER_BYTES: usize = 10;
const VERSION: u32 = 0x0101_0100;
const MOST_DOWN_BYTES: u32 = 16 << 20;

/// The fields of an EdgeMessage that this client uses.
#[derive(Default)]
pub struct Message {
    pub id: String,
    pub parent_id: String,
    pub timestamp_millis: i64,
    pub sync: bool,
    pub resource_version: String,
    pub source: String,
    pub group: String,
    pub operation: String,
    pub resource: String,
    pub content: Vec<u8>,
}

pub fn frame(message: &Message) -> Vec<u8> {
    let payload = message.encode();
    let mut out = VERSION.to_be_bytes().to_vec();
    out.extend([1, 0]);
    out.extend((payload.len() as u32).to_be_bytes());
    out.extend(payload);
    out
}

pub async fn read_frame(from: &mut quinn::RecvStream) -> Result<Message, Fault> {
    let mut head = [0; HEADER_BYTES];
    from.read_exact(&mut head).await?;
    let size = u32::from_be_bytes([head[6], head[7], head[8], head[9]]);
    if head[..4] != VERSION.to_be_bytes() || head[4] != 1 || head[5] != 0 || size > MOST_DOWN_BYTES
    {
        return Err(format!("no frame begins with {head:02x?}").into());
    }
    let mut payload = vec![0; size as usize];
    from.read_exact(&mut payload).await?;
    Ok(Message::decode(&payload)?)
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        let (mut header, mut router, mut out) = (Vec::new(), Vec::new(), Vec::new());
        put(&mut header, 1, self.id.as_bytes());
        put(&mut header, 2, self.parent_id.as_bytes());
        if self.timestamp_millis != 0 {
            // sint64: zigzag
            put_varint(&mut header, 3 << 3);
            put_varint(
                &mut header,
                ((self.timestamp_millis << 1) ^ (self.timestamp_millis >> 63)) as u64,
            );
        }
        if self.sync {
            header.extend([4 << 3, 1]);
        }
        put(&mut header, 6, self.resource_version.as_bytes());
        put(&mut router, 1, self.source.as_bytes());
        put(&mut router, 2, self.group.as_bytes());
        put(&mut router, 3, self.operation.as_bytes());
        put(&mut router, 4, self.resource.as_bytes());
        put(&mut out, 1, &header);
        put(&mut out, 2, &router);
        put(&mut out, 3, &self.content);
        out
    }

    /// Passes over fields that it does not know: newer hubs may send more.
    fn decode(payload: &[u8]) -> io::Result<Message> {
        let mut message = Message::default();
        for (field, value) in fields(payload)? {
            match (field, value) {
                (1, Value::Bytes(header)) => message.decode_header(header)?,
                (2, Value::Bytes(router)) => message.decode_router(router)?,
                (3, Value::Bytes(content)) => message.content = content.to_vec(),
                _ => {}
            }
        }
        Ok(message)
    }

    fn decode_header(&mut self, data: &[u8]) -> io::Result<()> {
        for (field, value) in fields(data)? {
            match (field, value) {
                (1, Value::Bytes(text)) => self.id = text_of(text),
                (2, Value::Bytes(text)) => self.parent_id = text_of(text),
                (3, Value::Number(number)) => {
                    self.timestamp_millis = (number >> 1) as i64 ^ -((number & 1) as i64)
                }
                (4, Value::Number(number)) => self.sync = number != 0,
                (6, Value::Bytes(text)) => self.resource_version = text_of(text),
                _ => {}
            }
        }
        Ok(())
    }

    fn decode_router(&mut self, data: &[u8]) -> io::Result<()> {
        for (field, value) in fields(data)? {
            match (field, value) {
                (1, Value::Bytes(text)) => self.source = text_of(text),
                (2, Value::Bytes(text)) => self.group = text_of(text),
                (3, Value::Bytes(text)) => self.operation = text_of(text),
                (4, Value::Bytes(text)) => self.resource = text_of(text),
                _ => {}
            }
        }
        Ok(())
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn put(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    if !value.is_empty() {
        put_varint(out, field << 3 | 2);
        put_varint(out, value.len() as u64);
        out.extend(value);
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn fields(mut data: &[u8]) -> io::Result<Vec<(u64, Value<'_>)>> {
    let mut found = Vec::new();
    while !data.is_empty() {
        let tag = varint(&mut data)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut data)?),
            1 => Value::Bytes(take(&mut data, 8)?),
            2 => {
                let size = varint(&mut data)?;
                Value::Bytes(take(&mut data, size)?)
            }
            5 => Value::Bytes(take(&mut data, 4)?),
            kind => return Err(io::Error::other(format!("a field of kind {kind}"))),
        };
        found.push((tag >> 3, value));
    }
    Ok(found)
}

fn varint(data: &mut &[u8]) -> io::Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(data, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(io::Error::other("a number without an end"))
}

fn take<'a>(data: &mut &'a [u8], size: u64) -> io::Result<&'a [u8]> {
    if size > data.len() as u64 {
        return Err(io::Error::other("the message is cut"));
    }
    let (head, rest) = data.split_at(size as usize);
    *data = rest;
    Ok(head)
}

//! An edge node that speaks the hub's link over QUIC (docs/protocol.md, "Over QUIC") with quinn: it opens a link,
//! acknowledges what comes and does what lines of its input say. `make check-peers` plays it against a hub.
//!
//!     upload JSON   sends user data, which the hub answers once it is stored
//!     say N         sends N keepalives
//!     rekey N       changes keys, and sends N keepalives
//!     migrate ADDR  goes on from another address of this machine
//!     leave         closes the link

mod wire;

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, io, process, thread};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, VarInt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::RootCertStore;
use tokio::sync::mpsc;

use wire::{frame, read_frame, Fault, Message, PREFIX};

const PROTOCOL: &[u8] = b"cloudhub-edge/1";
const HEARTBEAT: Duration = Duration::from_secs(15);
// Codes that a link is closed with.
const GOODBYE: u32 = 1000;
const BROKEN_PROTOCOL: u32 = 1002;
/// Acknowledgements, and lines of the input, that may wait for the connection.
const WAITING: usize = 16;

struct Options {
    hub: String,
    ca: String,
    certificate: String,
    key: String,
    node: String,
    project: String,
}

impl Options {
    fn read() -> Result<Options, Fault> {
        let mut options = Options {
            hub: "localhost:10001".into(),
            ca: "ca.crt".into(),
            certificate: "edge.crt".into(),
            key: "edge.key".into(),
            node: "edge-1".into(),
            project: "e632aba927ea4ac2b575ec1603d56f10".into(),
        };
        let mut arguments = env::args().skip(1);
        while let Some(flag) = arguments.next() {
            let value = arguments
                .next()
                .ok_or_else(|| format!("{flag} needs a value"))?;
            let place = match flag.as_str() {
                "--hub" => &mut options.hub,
                "--ca" => &mut options.ca,
                "--cert" => &mut options.certificate,
                "--key" => &mut options.key,
                "--node" => &mut options.node,
                "--project" => &mut options.project,
                _ => return Err(format!("{flag}: no such flag").into()),
            };
            *place = value;
        }
        Ok(options)
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let run = async { run(Options::read()?).await };
    if let Err(fault) = runtime
        .map_err(Fault::from)
        .and_then(|runtime| runtime.block_on(run))
    {
        println!("failed {fault}");
        process::exit(1);
    }
}

async fn run(options: Options) -> Result<(), Fault> {
    let mut endpoint = Endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into())?;
    endpoint.set_default_client_config(client_config(&options)?);
    let ended = live(&endpoint, &options).await;
    // Not before a close of this side has gone out.
    endpoint.wait_idle().await;
    ended
}

/// One link, until it is closed.
async fn live(endpoint: &Endpoint, options: &Options) -> Result<(), Fault> {
    let mut addresses = options.hub.to_socket_addrs()?;
    let address = addresses
        .find(SocketAddr::is_ipv4)
        .ok_or("the hub has no IPv4 address")?;
    let name = options.hub.rsplit_once(':').map_or("", |(host, _)| host);
    let connection = endpoint.connect(address, name)?.await?;
    // Held until the end: quinn ends a stream whose handle is dropped, and the hub ends the link with it.
    let (_request, _answer, mut up) = open(&connection, options).await?;
    println!("open");
    let (outgoing, mut acknowledgements) = mpsc::channel(WAITING);
    let mut receiving = tokio::spawn(receive(connection.clone(), outgoing));
    let mut commands = lines();
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    loop {
        tokio::select! {
            biased; // The end of the connection also ends what is received, and is what to tell.
            end = connection.closed() => return tell(end),
            broken = &mut receiving => {
                connection.close(VarInt::from_u32(BROKEN_PROTOCOL), b"no message came");
                return broken?;
            }
            _ = heartbeat.tick() => send(&mut up, keepalive()).await,
            Some(message) = acknowledgements.recv() => send(&mut up, message).await,
            Some(line) = commands.recv() => obey(&line, endpoint, &connection, &mut up).await?,
        }
    }
}

fn client_config(options: &Options) -> Result<quinn::ClientConfig, Fault> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&options.ca)?)?;
    let own =
        CertificateDer::pem_file_iter(&options.certificate)?.collect::<Result<Vec<_>, _>>()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(own, PrivateKeyDer::from_pem_file(&options.key)?)?;
    tls.alpn_protocols = vec![PROTOCOL.to_vec()];
    let mut transport = quinn::TransportConfig::default();
    // The hub opens one stream of its own: a client that allows none is refused.
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .max_concurrent_bidi_streams(VarInt::from_u32(0));
    transport.max_idle_timeout(Some(Duration::from_secs(90).try_into()?));
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Requests the link on the control stream, and begins the stream of messages.
async fn open(
    connection: &Connection,
    options: &Options,
) -> Result<(SendStream, RecvStream, SendStream), Fault> {
    let (mut request, mut answer) = connection.open_bi().await?;
    // Ids are names of Kubernetes: JSON has nothing to escape in them.
    let headers = format!(
        r#"{{"Node_id":["{}"],"Project_id":["{}"],"Connectionuse":["msg"]}}"#,
        options.node, options.project
    );
    let asked = Message {
        operation: "header".into(),
        content: headers.into(),
        ..named()
    };
    request.write_all(&frame(&asked)).await?;
    let said = read_frame(&mut answer).await?;
    if said.operation != "ack" {
        return Err(format!("refused: {}", String::from_utf8_lossy(&said.content)).into());
    }
    let mut up = connection.open_uni().await?;
    up.write_all(PREFIX).await?;
    Ok((request, answer, up))
}

/// Handles what comes until that is no message any more.
async fn receive(connection: Connection, outgoing: mpsc::Sender<Message>) -> Result<(), Fault> {
    let mut down = connection.accept_uni().await?;
    let mut begin = [0; PREFIX.len()];
    down.read_exact(&mut begin).await?;
    if begin != PREFIX {
        return Err(format!("no stream of messages begins with {begin:02x?}").into());
    }
    loop {
        if let Some(acknowledgement) = handle(read_frame(&mut down).await?) {
            outgoing.send(acknowledgement).await?;
        }
    }
}

/// Tells of a message; gives back what it is answered with.
fn handle(message: Message) -> Option<Message> {
    if message.operation == "response" || message.operation == "error" {
        println!(
            "answered {} {}",
            message.operation,
            String::from_utf8_lossy(&message.content)
        );
        return None;
    }
    if message.source == "cloudhub" {
        println!("told {}", message.operation);
        return None;
    }
    // Store it, then say so.
    println!(
        "received {} {} {}",
        message.operation, message.resource, message.resource_version
    );
    Some(Message {
        parent_id: message.id,
        source: "edge".into(),
        group: "resource".into(),
        operation: "response".into(),
        resource: message.resource,
        content: br#""OK""#.to_vec(),
        ..named()
    })
}

async fn obey(
    line: &str,
    endpoint: &Endpoint,
    connection: &Connection,
    up: &mut SendStream,
) -> Result<(), Fault> {
    let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
    match command {
        "upload" => {
            let message = Message {
                sync: true,
                source: "edge".into(),
                group: "user".into(),
                operation: "upload".into(),
                resource: "readings".into(),
                content: rest.into(),
                ..named()
            };
            send(up, message).await;
        }
        "say" | "rekey" => {
            if command == "rekey" {
                connection.force_key_update();
            }
            for _ in 0..rest.parse()? {
                send(up, keepalive()).await;
            }
            println!("{command}ed {rest}");
        }
        "migrate" => {
            endpoint.rebind(UdpSocket::bind((rest, 0))?)?;
            println!("migrated {rest}");
        }
        "leave" => connection.close(VarInt::from_u32(GOODBYE), b"leaving"),
        _ => {}
    }
    Ok(())
}

async fn send(up: &mut SendStream, message: Message) {
    // Of a connection that is over `closed` tells.
    let _ = up.write_all(&frame(&message)).await;
}

fn tell(end: ConnectionError) -> Result<(), Fault> {
    match end {
        ConnectionError::ApplicationClosed(close) => {
            println!(
                "closed {} {}",
                close.error_code,
                String::from_utf8_lossy(&close.reason)
            );
            Ok(())
        }
        ConnectionError::LocallyClosed => {
            println!("closed {GOODBYE} leaving");
            Ok(())
        }
        other => Err(other.into()),
    }
}

fn keepalive() -> Message {
    Message {
        source: "websocket".into(),
        group: "resource".into(),
        operation: "keepalive".into(),
        resource: "node".into(),
        content: br#""ping""#.to_vec(),
        ..named()
    }
}

/// A message with an id of its own and the time.
fn named() -> Message {
    static NUMBERS: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Message {
        id: format!(
            "{:x}-{}",
            now.as_nanos(),
            NUMBERS.fetch_add(1, Ordering::Relaxed)
        ),
        timestamp_millis: now.as_millis() as i64,
        ..Message::default()
    }
}

/// The lines of the standard input, as they come.
fn lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(WAITING);
    thread::spawn(move || {
        for line in io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

//! Notices that the bridge no longer holds our flows, or knows other pods, cheaply and within a
//! fraction of a second.
//!
//! Owns one OpenFlow 1.3 connection to the bridge's management socket, on which it asks every
//! [`PERIOD`] how many flows carry our cookie, and how many there are in the table that tells pods
//! apart: 56 bytes there, 40 bytes back. Must not read or change flows; it only wakes the
//! reconciler.
//!
//! Why not `ovs-ofctl monitor`: before Open vSwitch 2.16 it does not speak OpenFlow 1.3, and
//! OpenShift's bridge speaks nothing else. Why not a process a poll: ten times the cost.
//! Surprising: a foreign change of a group that leaves our flows in place is not noticed here,
//! only by the periodic full resync; a deleted group is, because its flows go with it. So is a pod
//! that another one takes the place of between two questions.
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::POD_TABLE;

/// Between two questions.
pub const PERIOD: Duration = Duration::from_millis(200);
/// An answer that takes longer is none.
const DEADLINE: Duration = Duration::from_secs(5);

const VERSION: u8 = 4;
const HELLO: u8 = 0;
const ERROR: u8 = 1;
const ECHO_REQUEST: u8 = 2;
const ECHO_REPLY: u8 = 3;
const MULTIPART_REQUEST: u8 = 18;
const MULTIPART_REPLY: u8 = 19;
const AGGREGATE: u16 = 2;
/// OFPTT_ALL.
const ALL_TABLES: u8 = 0xff;
/// Length of every message's header.
const HEADER: usize = 8;
/// Where the number of flows stands in an aggregate reply's body.
const FLOW_COUNT: usize = 24;

/// What a bridge holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Flows with our cookie.
    pub ours: u32,
    /// Flows in the pods' table, whoever's they are.
    pub of_pods: u32,
}

/// The wake-up of one bridge.
#[derive(Debug)]
pub struct Watch {
    socket: PathBuf,
    cookie: u64,
    connection: Option<UnixStream>,
}

impl Watch {
    /// Connects at the first question.
    pub fn new(socket: PathBuf, cookie: u64) -> Self {
        Self { socket, cookie, connection: None }
    }

    /// Returns as soon as the bridge holds other numbers of flows than `expected`.
    ///
    /// `expected` is what the last reconciliation left, or none when the bridge did not answer. So
    /// it returns at once if a change came before the call, a flush and a restart return with the
    /// new numbers, and a bridge that comes back returns from none.
    /// What it returns are the numbers now, or none when the bridge does not answer any more.
    pub async fn differs_from(&mut self, expected: Option<Counts>) -> Option<Counts> {
        loop {
            let count = self.count().await.ok();
            if count != expected {
                return count;
            }
            sleep(PERIOD).await;
        }
    }

    /// What the bridge holds now.
    ///
    /// # Errors
    /// The bridge does not answer; the connection is made anew at the next question.
    pub async fn count(&mut self) -> Result<Counts> {
        let asked = timeout(DEADLINE, async {
            let mut stream = match self.connection.take() {
                Some(stream) => stream,
                None => connect(&self.socket).await?,
            };
            let ours = ask(&mut stream, ALL_TABLES, (self.cookie, u64::MAX)).await?;
            let of_pods = ask(&mut stream, POD_TABLE, (0, 0)).await?;
            self.connection = Some(stream);
            anyhow::Ok(Counts { ours, of_pods })
        });
        asked
            .await
            .map_err(anyhow::Error::from)
            .flatten()
            .with_context(|| format!("count our flows through {}", self.socket.display()))
    }
}

async fn connect(socket: &Path) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(&message(HELLO, &[])).await?;
    let (kind, _) = read(&mut stream).await?;
    ensure!(kind == HELLO, "the bridge does not greet, but sends message type {kind}");
    Ok(stream)
}

/// How many flows are in the table with the cookie under its mask.
async fn ask(stream: &mut UnixStream, table: u8, cookie: (u64, u64)) -> Result<u32> {
    stream.write_all(&message(MULTIPART_REQUEST, &aggregate_of(table, cookie))).await?;
    loop {
        match read(stream).await? {
            (MULTIPART_REPLY, body) => return flow_count(&body),
            (ECHO_REQUEST, body) => stream.write_all(&message(ECHO_REPLY, &body)).await?,
            (ERROR, body) => bail!("the bridge refuses with OpenFlow error {:02x?}", body.get(..4)),
            _ => {}
        }
    }
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(HEADER + body.len()).expect("our messages are short");
    let mut bytes = vec![VERSION, kind];
    bytes.extend(length.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

/// OFPMP_AGGREGATE (OpenFlow 1.3.5, 7.3.5.3): any port, any group.
fn aggregate_of(table: u8, (cookie, mask): (u64, u64)) -> Vec<u8> {
    let mut body = Vec::with_capacity(48);
    body.extend(AGGREGATE.to_be_bytes());
    body.extend([0; 6]);
    body.extend([table, 0, 0, 0]);
    body.extend([0xff; 8]);
    body.extend([0; 4]);
    body.extend(cookie.to_be_bytes());
    body.extend(mask.to_be_bytes());
    // An empty OXM match: type 1, length 4, padded to 8.
    body.extend([0, 1, 0, 4, 0, 0, 0, 0]);
    body
}

fn flow_count(body: &[u8]) -> Result<u32> {
    let bytes = body
        .get(FLOW_COUNT..FLOW_COUNT + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .with_context(|| format!("an aggregate reply of {} bytes", body.len()))?;
    Ok(u32::from_be_bytes(bytes))
}

async fn read(stream: &mut UnixStream) -> Result<(u8, Vec<u8>)> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await?;
    let [_, kind, high, low, ..] = header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let mut body =
        vec![0; length.checked_sub(HEADER).context("a message shorter than its header")?];
    stream.read_exact(&mut body).await?;
    Ok((kind, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_has_the_length_and_cookie_of_the_standard() {
        let bytes =
            message(MULTIPART_REQUEST, &aggregate_of(POD_TABLE, (0x0102_0304_0506_0708, u64::MAX)));
        assert_eq!(bytes.len(), 56);
        assert_eq!(bytes[..4], [4, 18, 0, 56]);
        assert_eq!(bytes[16], 20);
        assert_eq!(bytes[32..40], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[40..48], [0xff; 8]);
    }

    #[tokio::test]
    async fn an_echo_request_in_between_is_answered() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let switch = async {
            assert_eq!(read(&mut theirs).await.unwrap().0, MULTIPART_REQUEST);
            theirs.write_all(&message(ECHO_REQUEST, b"ping")).await.unwrap();
            let mut body = vec![0; 32];
            body[FLOW_COUNT + 3] = 7;
            theirs.write_all(&message(MULTIPART_REPLY, &body)).await.unwrap();
            assert_eq!(read(&mut theirs).await.unwrap(), (ECHO_REPLY, b"ping".to_vec()));
        };
        assert_eq!(tokio::join!(ask(&mut ours, ALL_TABLES, (1, u64::MAX)), switch).0.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_switch_that_hangs_up_or_babbles_is_an_error() {
        for (sent, expected) in [
            (message(ERROR, &[0, 1, 0, 2]), "OpenFlow error Some([00, 01, 00, 02])"),
            (vec![4, MULTIPART_REPLY, 0, 3, 0, 0, 0, 0], "shorter than its header"),
            (message(MULTIPART_REPLY, &[0; 8]), "reply of 8 bytes"),
            (vec![], "early eof"),
        ] {
            let (mut ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(&sent).await.unwrap();
            theirs.shutdown().await.unwrap();
            let error = ask(&mut ours, ALL_TABLES, (1, u64::MAX)).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_switch_that_keeps_silent_is_an_error_after_a_while() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut watch = Watch::new("br0.mgmt".into(), 1);
        watch.connection = Some(ours);
        let error = watch.count().await.unwrap_err().to_string();
        assert_eq!(error, "count our flows through br0.mgmt");
        assert!(watch.connection.is_none(), "it is not asked on the same connection again");
    }

    #[tokio::test]
    async fn no_answer_differs_from_any_number() {
        let mut watch = Watch::new("/nonexistent/br0.mgmt".into(), 1);
        assert_eq!(watch.differs_from(Some(Counts::default())).await, None);
    }
}

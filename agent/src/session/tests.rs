//! A role that knows nothing, and coordinators that ask it.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use wire::control::Call;

use super::*;

#[derive(Default)]
struct Parrot {
    events: Events,
    data: Mutex<Vec<(u64, u16, Vec<u8>)>>,
    wound_up: Mutex<u32>,
}

impl Role for Parrot {
    const ROLE: AgentRole = AgentRole::Source;

    type Stream = DuplexStream;

    async fn answer(
        self: Arc<Self>,
        owner: MigrationId,
        request: Request,
    ) -> Result<Reply, Failure> {
        match request {
            Request::StopRound => {
                self.events.note(format!("of {owner}"));
                Ok(Reply::Done)
            }
            _ => Err(failure(ErrorCode::WrongState, "no")),
        }
    }

    async fn data(self: Arc<Self>, generation: u64, number: u16, mut stream: Met<DuplexStream>) {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        lock(&self.data).push((generation, number, bytes));
    }

    async fn wind_up(self: Arc<Self>) {
        *lock(&self.wound_up) += 1;
    }
}

fn host() -> Arc<Host<Parrot>> {
    let role = Arc::new(Parrot::default());
    let events = role.events.clone();
    Host::new(role, Identity::generate(), events, "boot".to_owned())
}

/// A coordinator's end of a control stream.
struct Caller {
    reader: ControlReader<tokio::io::ReadHalf<ByteStream>>,
    writer: tokio::io::WriteHalf<ByteStream>,
}

const WITHIN: Duration = Duration::from_secs(600);

fn connect(host: &Arc<Host<Parrot>>, allowed: Allowed) -> DuplexStream {
    let (ours, theirs) = duplex(64 << 10);
    let host = Arc::clone(host);
    tokio::spawn(async move { host.serve(theirs, allowed).await });
    ours
}

async fn dial(host: &Arc<Host<Parrot>>, me: &Identity) -> Caller {
    let stream = meet::open(connect(host, Allowed::Everything), Purpose::Control, WITHIN);
    let secured = secure::connect(stream.await.unwrap(), me, Trust::FirstSeen).await.unwrap();
    let stream: ByteStream = Box::new(secured.stream);
    let (reader, writer) = tokio::io::split(stream);
    Caller { reader: ControlReader::new(reader), writer }
}

fn hello(me: &Identity, migration: &str) -> Request {
    Request::Hello {
        version: CONTROL_VERSION,
        migration: migration.parse().unwrap(),
        coordinator_key: me.spki_hex(),
    }
}

impl Caller {
    async fn ask(&mut self, id: u64, request: Request) {
        control::write(&mut self.writer, &Call { id, request }).await.unwrap();
    }

    async fn hear(&mut self) -> Option<Message> {
        self.reader.next().await.ok().flatten()
    }

    async fn reply(&mut self, id: u64, request: Request) -> Result<Reply, ErrorCode> {
        self.ask(id, request).await;
        match self.hear().await.unwrap() {
            Message::Reply { id: answered, result } => {
                assert_eq!(answered, id);
                result.map_err(|failure| failure.code)
            }
            Message::Event(event) => panic!("an event in place of a reply: {event:?}"),
        }
    }
}

#[tokio::test]
async fn the_first_coordinator_owns_the_agent_and_another_is_refused() {
    let (host, first, second) = (host(), Identity::generate(), Identity::generate());
    let mut caller = dial(&host, &first).await;
    assert!(caller.reply(1, hello(&first, "web1")).await.is_ok());
    let mut other = dial(&host, &second).await;
    assert_eq!(other.reply(1, hello(&second, "web1")).await, Err(ErrorCode::Foreign));
    let mut same_key = dial(&host, &first).await;
    assert_eq!(same_key.reply(1, hello(&first, "web2")).await, Err(ErrorCode::Foreign));
    let still = caller.reply(2, Request::Status).await;
    assert_eq!(still, Err(ErrorCode::WrongState), "the owner is still served");
}

#[tokio::test]
async fn a_key_that_was_not_proven_does_not_own_the_agent() {
    let (host, owner, thief) = (host(), Identity::generate(), Identity::generate());
    let mut caller = dial(&host, &thief).await;
    assert_eq!(caller.reply(1, hello(&owner, "web1")).await, Err(ErrorCode::Foreign));
    let mut caller = dial(&host, &owner).await;
    assert!(caller.reply(1, hello(&owner, "web1")).await.is_ok());
}

#[tokio::test]
async fn the_newest_session_of_the_owner_wins_and_hears_the_events() {
    let (host, owner) = (host(), Identity::generate());
    let mut old = dial(&host, &owner).await;
    old.reply(1, hello(&owner, "web1")).await.unwrap();
    let mut new = dial(&host, &owner).await;
    new.reply(1, hello(&owner, "web1")).await.unwrap();
    assert_eq!(old.hear().await, None, "the old session is closed");
    new.ask(2, Request::StopRound).await;
    let note = Message::Event(Event::Note { text: "of web1".to_owned() });
    assert_eq!(new.hear().await, Some(note));
    assert_eq!(new.hear().await, Some(Message::Reply { id: 2, result: Ok(Reply::Done) }));
}

#[tokio::test]
async fn nothing_is_answered_before_hello() {
    let (host, owner) = (host(), Identity::generate());
    let mut caller = dial(&host, &owner).await;
    assert_eq!(caller.reply(1, Request::Status).await, Err(ErrorCode::WrongState));
    assert_eq!(caller.hear().await, None);
}

#[tokio::test]
async fn a_request_of_a_newer_coordinator_is_said_to_be_unknown() {
    let (host, owner) = (host(), Identity::generate());
    let mut caller = dial(&host, &owner).await;
    caller.reply(1, hello(&owner, "web1")).await.unwrap();
    let newer = serde_json::json!({ "id": 9, "request": { "levitate": { "by": 3 } } });
    control::write(&mut caller.writer, &newer).await.unwrap();
    let Some(Message::Reply { id: 9, result: Err(failure) }) = caller.hear().await else {
        panic!("no failure");
    };
    assert_eq!(failure.code, ErrorCode::Unknown);
}

#[tokio::test]
async fn shutdown_winds_up_and_ends_after_its_reply() {
    let (host, owner) = (host(), Identity::generate());
    let mut caller = dial(&host, &owner).await;
    caller.reply(1, hello(&owner, "web1")).await.unwrap();
    assert_eq!(caller.reply(2, Request::Shutdown).await, Ok(Reply::Done));
    host.ended().await;
    assert_eq!(*lock(&host.role.wound_up), 1);
}

#[tokio::test]
async fn data_streams_reach_the_role_with_their_numbers() {
    let host = host();
    let stream = connect(&host, Allowed::DataOnly);
    let purpose = Purpose::Data { generation: 7, stream: 3 };
    let mut stream = meet::open(stream, purpose, WITHIN).await.unwrap();
    stream.write_all(b"bytes").await.unwrap();
    drop(stream);
    while lock(&host.role.data).is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(*lock(&host.role.data), [(7, 3, b"bytes".to_vec())]);
}

#[tokio::test]
async fn control_is_refused_where_only_data_may_come() {
    let host = host();
    let stream = connect(&host, Allowed::DataOnly);
    let mut stream = meet::open(stream, Purpose::Control, WITHIN).await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
}

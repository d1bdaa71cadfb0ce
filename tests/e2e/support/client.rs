//! An SMTP client that does exactly what it is told, also what it should not.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::PATIENCE;

/// A reply: its code, and the text of its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub code: u16,
    pub lines: Vec<String>,
}

impl Reply {
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }

    /// Itself, when it has this code.
    #[track_caller]
    pub fn expect(self, code: u16) -> Self {
        assert_eq!(self.code, code, "{}", self.text());
        self
    }

    /// The id in `queued as <id>`.
    #[track_caller]
    pub fn queue_id(&self) -> String {
        let text = self.text();
        let (_, id) = text.rsplit_once("queued as ").unwrap_or_else(|| panic!("no id in {text}"));
        id.trim().to_owned()
    }
}

/// A connection, after its greeting.
pub struct Client {
    reader: BufReader<TcpStream>,
    pub greeting: Reply,
}

impl Client {
    /// Connects and says EHLO.
    pub fn hello(address: SocketAddr) -> Self {
        let mut client = Self::connect(address);
        client.greeting.clone().expect(220);
        client.command("EHLO client.test").expect(250);
        client
    }

    pub fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address, None).unwrap_or_else(|e| panic!("{address}: {e}"))
    }

    pub fn connect_from(source: IpAddr, address: SocketAddr) -> Self {
        Self::try_connect(address, Some(source)).unwrap_or_else(|e| panic!("{address}: {e}"))
    }

    pub fn try_connect(address: SocketAddr, source: Option<IpAddr>) -> std::io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        socket.connect_timeout(&address.into(), Duration::from_secs(5))?;
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        let greeting = read_reply(&mut reader)?;
        Ok(Self { reader, greeting })
    }

    #[track_caller]
    pub fn command(&mut self, line: &str) -> Reply {
        self.try_command(line).unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    pub fn try_command(&mut self, line: &str) -> std::io::Result<Reply> {
        self.write(format!("{line}\r\n").as_bytes())?;
        self.reply()
    }

    pub fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    pub fn reply(&mut self) -> std::io::Result<Reply> {
        read_reply(&mut self.reader)
    }

    /// Whether the other side closes, with nothing more to say.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(e) => e.kind() == ErrorKind::ConnectionReset,
        }
    }

    /// MAIL and RCPT.
    #[track_caller]
    pub fn envelope(&mut self, from: &str, to: &[&str]) {
        self.command(&format!("MAIL FROM:<{from}>")).expect(250);
        for recipient in to {
            self.command(&format!("RCPT TO:<{recipient}>")).expect(250);
        }
    }

    /// DATA with this content, dots stuffed.
    #[track_caller]
    pub fn data(&mut self, content: &[u8]) -> Reply {
        self.try_data(content).unwrap_or_else(|e| panic!("DATA: {e}"))
    }

    pub fn try_data(&mut self, content: &[u8]) -> std::io::Result<Reply> {
        let reply = self.try_command("DATA")?;
        if reply.code != 354 {
            return Ok(reply);
        }
        self.write(&stuffed(content))?;
        self.reply()
    }

    /// BDAT with this content in chunks of these sizes, over and over; the last reply.
    #[track_caller]
    pub fn bdat(&mut self, content: &[u8], sizes: &[usize]) -> Reply {
        let mut rest = content;
        for size in sizes.iter().cycle() {
            let (chunk, after) = rest.split_at((*size).min(rest.len()));
            rest = after;
            let last = if rest.is_empty() { " LAST" } else { "" };
            self.write(format!("BDAT {}{last}\r\n", chunk.len()).as_bytes()).unwrap();
            self.write(chunk).unwrap();
            let reply = self.reply().unwrap();
            if rest.is_empty() || reply.code != 250 {
                return reply;
            }
        }
        unreachable!("sizes is not empty")
    }

    /// A whole transaction; its queue id.
    #[track_caller]
    pub fn send(&mut self, from: &str, to: &[&str], content: &[u8]) -> String {
        self.envelope(from, to);
        self.data(content).expect(250).queue_id()
    }
}

/// The content as it goes over the wire after 354: dots stuffed, ended by the dot.
pub fn stuffed(content: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(content.len() + 1024);
    for line in content.split_inclusive(|b| *b == b'\n') {
        if line.starts_with(b".") {
            wire.push(b'.');
        }
        wire.extend_from_slice(line);
    }
    if !wire.is_empty() && !wire.ends_with(b"\r\n") {
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b".\r\n");
    wire
}

fn read_reply(reader: &mut BufReader<TcpStream>) -> std::io::Result<Reply> {
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        let code = line.get(..3).and_then(|c| c.parse().ok());
        let code: u16 =
            code.ok_or_else(|| std::io::Error::other(format!("not a reply: {line}")))?;
        lines.push(line.get(4..).unwrap_or_default().to_owned());
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(Reply { code, lines });
        }
    }
}

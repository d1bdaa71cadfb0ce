//! HTTP as far as tests need it: one request, one connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::{PATIENCE, eventually};

/// The whole answer to GET.
pub fn get(address: SocketAddr, path: &str) -> String {
    // The socket for mail is there before the spool is open, this one after.
    eventually(PATIENCE, "the door for probes", || TcpStream::connect(address).ok());
    request(address, "GET", path, "").unwrap()
}

/// The JSON in the answer to GET; `None` where there is none, or nobody.
pub fn get_json(address: SocketAddr, path: &str) -> Option<Value> {
    let answer = request(address, "GET", path, "").ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

/// Posts this JSON. The whole answer.
pub fn post(address: SocketAddr, path: &str, more: &str, body: &Value) -> String {
    let (body, json) = (body.to_string(), "Content-Type: application/json\r\n");
    let length = format!("Content-Length: {}\r\n", body.len());
    request(address, "POST", path, &format!("{json}{length}{more}\r\n{body}")).unwrap()
}

/// The value of a metric with its labels.
pub fn value(page: &str, metric: &str) -> Option<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(metric));
    line.map(|rest| rest.trim().parse().unwrap())
}

fn request(address: SocketAddr, method: &str, path: &str, rest: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let rest = if rest.is_empty() { "\r\n" } else { rest };
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n{rest}")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

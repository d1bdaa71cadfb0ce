//! Messages to send, and what to look for when they arrive.

/// A small message that a reader of the log can tell apart.
pub fn message(id: &str) -> Vec<u8> {
    with_body(id, b"one line\r\n")
}

/// A message with this body.
pub fn with_body(id: &str, body: &[u8]) -> Vec<u8> {
    let mut content = head(id).into_bytes();
    content.extend_from_slice(b"\r\n");
    content.extend_from_slice(body);
    content
}

/// The header of a message, complete enough that nobody adds to it.
pub fn head(id: &str) -> String {
    format!(
        "Date: Sat, 21 Nov 2026 09:12:01 +0000\r\nFrom: App <app@example.test>\r\n\
         To: Ana <ana@example.test>\r\nSubject: test {id}\r\nMessage-ID: <{id}@test>\r\n\
         MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Transfer-Encoding: 8bit\r\n"
    )
}

/// The Message-ID without its brackets.
pub fn message_id(content: &[u8]) -> Option<String> {
    let head = &content[..content.len().min(64 << 10)];
    String::from_utf8_lossy(head).split("\r\n").take_while(|line| !line.is_empty()).find_map(
        |line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("message-id")
                .then(|| value.trim().trim_matches(['<', '>']).to_owned())
        },
    )
}

/// Splits the first `hops` Received headers off: those lines, and what lies below them.
pub fn below_received(content: &[u8], hops: usize) -> (Vec<String>, &[u8]) {
    let mut rest = content;
    let mut received = Vec::new();
    for _ in 0..hops {
        assert!(rest.starts_with(b"Received: "), "{}", String::from_utf8_lossy(&rest[..80]));
        let end = header_end(rest);
        received.push(String::from_utf8_lossy(&rest[..end]).into_owned());
        rest = &rest[end..];
    }
    (received, rest)
}

/// Fails with the first place where they differ.
#[track_caller]
pub fn assert_same(name: &str, got: &[u8], want: &[u8]) {
    if got == want {
        return;
    }
    let at = got.iter().zip(want).take_while(|(a, b)| a == b).count();
    let around = |b: &[u8]| {
        let piece = &b[at.saturating_sub(40).min(b.len())..(at + 40).min(b.len())];
        String::from_utf8_lossy(piece).escape_debug().to_string()
    };
    panic!(
        "{name}: differs at octet {at}; got {} octets, want {}\n got …{}…\nwant …{}…",
        got.len(),
        want.len(),
        around(got),
        around(want)
    );
}

fn header_end(content: &[u8]) -> usize {
    let mut end = 0;
    loop {
        let line = content[end..].windows(2).position(|w| w == b"\r\n").unwrap();
        end += line + 2;
        if !matches!(content.get(end), Some(b' ' | b'\t')) {
            return end;
        }
    }
}

//! The little HTTP/1.1 that a scraper and a health probe need: GET and HEAD of a few pages, with keep-alive.
//!
//! One accept loop on one core, its connections as background tasks of that core: whoever watches must not disturb. The
//! parser is the crate `httparse`; what a page says comes from a [`Site`]. Absent on purpose: bodies of requests, chunks,
//! compression, TLS. Bounds: [`CONNECTIONS_MAX`], [`HEAD_BYTES_MAX`], [`QUIET_MAX`].

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;

use crate::io::env::Env;
use crate::io::tcp::{Listener, Stream};

/// Connections at a time; further ones are closed at once.
const CONNECTIONS_MAX: usize = 64;
/// Bytes of a request with all its headers.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// A connection on which nothing moves for so long is closed. Scrapers come every 15 to 60 seconds.
const QUIET_MAX: Duration = Duration::from_secs(120);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a page says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub status: Status,
    pub content_type: &'static str,
    pub body: String,
}

impl Page {
    /// A page of plain text.
    pub fn text(status: Status, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: body.into(),
        }
    }
}

/// The status codes that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    TooLarge,
    Unavailable,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::TooLarge => "431 Request Header Fields Too Large",
            Self::Unavailable => "503 Service Unavailable",
        }
    }
}

/// Answer of a [`Site`].
pub type PageFuture = Pin<Box<dyn Future<Output = Page>>>;

/// Who knows the pages. Called on the core of the listener.
pub trait Site: 'static {
    /// The page of a path, without its query.
    fn page(&self, path: &str) -> PageFuture;
}

/// A request, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Request {
    path: String,
    head_only: bool,
    keep_alive: bool,
    /// Bytes of the buffer that it took.
    bytes: usize,
}

/// `Ok(None)`: more bytes are needed. An error is answered and ends the connection.
fn parse(buffer: &[u8]) -> Result<Option<Request>, Page> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let bytes = match parsed.parse(buffer) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) if buffer.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            let limits = format!(
                "a request may have {HEADERS_MAX} headers and {HEAD_BYTES_MAX} bytes in all\n"
            );
            return Err(Page::text(Status::TooLarge, limits));
        }
        Err(error) => {
            let body = format!("this is not a request of HTTP/1.1: {error}\n");
            return Err(Page::text(Status::BadRequest, body));
        }
    };
    let head_only = match parsed.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Err(Page::text(Status::MethodNotAllowed, "only GET and HEAD\n")),
    };
    let mut keep_alive = parsed.version == Some(1);
    for header in parsed.headers.iter() {
        let value = header.value.trim_ascii();
        if header.name.eq_ignore_ascii_case("connection") {
            keep_alive = match value {
                value if value.eq_ignore_ascii_case(b"close") => false,
                value if value.eq_ignore_ascii_case(b"keep-alive") => true,
                _ => keep_alive,
            };
        }
        let has_body = header.name.eq_ignore_ascii_case("transfer-encoding")
            || header.name.eq_ignore_ascii_case("content-length") && value != b"0";
        if has_body {
            let body = "a request without a body is wanted\n";
            return Err(Page::text(Status::BadRequest, body));
        }
    }
    let path = parsed.path.unwrap_or("/");
    let path = path.split(['?', '#']).next().unwrap_or(path).to_owned();
    Ok(Some(Request {
        path,
        head_only,
        keep_alive,
        bytes,
    }))
}

fn head(page: &Page, keep_alive: bool) -> String {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let allow = match page.status {
        Status::MethodNotAllowed => "Allow: GET, HEAD\r\n",
        _ => "",
    };
    format!(
        "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n{allow}Connection: {connection}\r\n\r\n",
        page.status.line(),
        page.content_type,
        page.body.len(),
    )
}

async fn write(stream: &Stream, head: &[u8], body: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < head.len() + body.len() {
        let head_left = &head[written.min(head.len())..];
        let body_left = &body[written.saturating_sub(head.len())..];
        let slices = [IoSlice::new(head_left), IoSlice::new(body_left)];
        written += poll_fn(|cx| stream.poll_write(cx, &slices)).await?;
    }
    Ok(())
}

/// Serves pages until the executor ends.
pub fn serve<E: Env>(env: &E, listener: Listener, site: Rc<dyn Site>) {
    let own = env.clone();
    let open = Rc::new(Cell::new(0));
    env.spawn_background(async move {
        loop {
            match poll_fn(|cx| listener.poll_accept(cx)).await {
                Ok(stream) if open.get() < CONNECTIONS_MAX => {
                    open.set(open.get() + 1);
                    let (site, open, env) = (site.clone(), open.clone(), own.clone());
                    own.spawn_background(async move {
                        let peer = stream.peer();
                        if let Err(error) = converse(&env, stream, &*site).await {
                            tracing::debug!(%peer, %error, "a connection of the metrics port ended");
                        }
                        open.set(open.get() - 1);
                    });
                }
                Ok(stream) => {
                    tracing::debug!(peer = %stream.peer(), "too many connections of the metrics port");
                }
                Err(error) => {
                    tracing::debug!(%error, "the metrics port cannot accept");
                    own.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
}

/// One connection, until its peer or a mistake ends it.
async fn converse<E: Env>(env: &E, stream: Stream, site: &dyn Site) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        let request = loop {
            match parse(&buffer) {
                Ok(Some(request)) => break request,
                Ok(None) => {}
                Err(page) => {
                    return write(&stream, head(&page, false).as_bytes(), page.body.as_bytes())
                        .await;
                }
            }
            buffer.reserve(1 << 10);
            let read = async { Some(poll_fn(|cx| stream.poll_read(cx, &mut buffer)).await) };
            let limit = async {
                env.sleep(QUIET_MAX).await;
                None
            };
            match futures_lite::future::or(read, limit).await {
                Some(Ok(0)) | None => return Ok(()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
            }
        };
        let _ = buffer.split_to(request.bytes);
        if buffer.is_empty() {
            // A quiet connection holds no memory.
            buffer = BytesMut::new();
        }
        let page = site.page(&request.path).await;
        let body = if request.head_only { "" } else { &page.body };
        let head = head(&page, request.keep_alive);
        let answer = async { Some(write(&stream, head.as_bytes(), body.as_bytes()).await) };
        let limit = async {
            env.sleep(QUIET_MAX).await;
            None
        };
        match futures_lite::future::or(answer, limit).await {
            Some(result) => result?,
            None => return Err(io::ErrorKind::TimedOut.into()),
        }
        if !request.keep_alive {
            return Ok(());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_is_complete_with_its_empty_line_and_keeps_the_connection_by_default() {
        let whole = b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\nGET /next";
        for end in 0..38 {
            assert_eq!(parse(&whole[..end]).unwrap(), None, "{end}");
        }
        let request = parse(whole).unwrap().unwrap();
        assert_eq!((request.path.as_str(), request.bytes), ("/metrics", 38));
        assert!(request.keep_alive && !request.head_only);
        let old = parse(b"HEAD / HTTP/1.0\r\n\r\n").unwrap().unwrap();
        assert!(old.head_only && !old.keep_alive);
        let closing = parse(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
        assert!(!closing.unwrap().unwrap().keep_alive);
    }

    #[test]
    fn what_is_not_offered_is_refused_with_the_right_status() {
        let status = |text: &str| parse(text.as_bytes()).unwrap_err().status;
        assert_eq!(status("POST / HTTP/1.1\r\n\r\n"), Status::MethodNotAllowed);
        assert_eq!(status("\0\0\0\x10garbage"), Status::BadRequest);
        assert_eq!(
            status("GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"),
            Status::BadRequest
        );
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65));
        assert_eq!(status(&many), Status::TooLarge);
        let long = format!("GET / HTTP/1.1\r\nA: {}", "b".repeat(HEAD_BYTES_MAX));
        assert_eq!(status(&long), Status::TooLarge);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }
    }
}

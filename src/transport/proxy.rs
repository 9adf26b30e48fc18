//! Through a web proxy: `CONNECT` (RFC 9110, 9.3.6), with name and password if it asks for them. The proxy sees the address and what TLS
//! lets through; it can stop a line, and nothing else.

use std::fmt;
use std::io;
use std::net::IpAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest answer of a proxy to a `CONNECT`, in bytes.
const ANSWER_BYTES_MAX: usize = 8 << 10;

/// A proxy, as `HTTPS_PROXY` names it. `Debug` and `Display` show no password.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    address: String,
    /// User and password in base 64.
    credentials: Option<String>,
    /// Hosts that are reached without it.
    without: Vec<String>,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({})", self.address)
    }
}

impl Proxy {
    /// Reads `http://[USER:PASSWORD@]HOST[:PORT]` and the list of hosts that are reached without it.
    ///
    /// # Errors
    /// The URL is of another kind. The text has no password in it.
    pub fn new(url: &str, without: &str) -> Result<Proxy, String> {
        let rest = match url.trim().split_once("://") {
            Some(("http", rest)) => rest,
            None => url.trim(),
            Some((scheme, _)) => return Err(format!("HTTPS_PROXY begins with `{scheme}://`; only http:// proxies are known")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, address) = match rest.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, rest),
        };
        if address.is_empty() || address.contains('/') {
            return Err("HTTPS_PROXY is not of the form http://HOST:PORT".to_owned());
        }
        let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let address = if has_port { address.to_owned() } else { format!("{address}:80") };
        let credentials = user.map(|user| data_encoding::BASE64.encode(&unescaped(user)));
        let without = without.split(',').map(|host| host.trim().trim_start_matches('.').to_ascii_lowercase());
        Ok(Proxy { address, credentials, without: without.filter(|host| !host.is_empty()).collect() })
    }

    /// Whether an address is reached through the proxy. This machine itself never is.
    pub fn is_for(&self, address: &str) -> bool {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback()) {
            return false;
        }
        !self.without.iter().any(|without| {
            without == "*" || host == *without || host.strip_suffix(without.as_str()).is_some_and(|before| before.ends_with('.'))
        })
    }
}

/// Takes `%40` and the like back.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, others @ ..] = rest {
        let code = (*first == b'%').then(|| others.get(..2)).flatten();
        match code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &others[2..];
            }
            None => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    bytes
}

/// Opens a socket through a proxy.
///
/// # Errors
/// The proxy is not there, says no, or says nothing that can be understood.
pub async fn connect(proxy: &Proxy, address: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(&proxy.address).await?;
    let credentials =
        proxy.credentials.as_ref().map_or_else(String::new, |credentials| format!("Proxy-Authorization: Basic {credentials}\r\n"));
    stream.write_all(format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n{credentials}\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the empty line is no longer the proxy's.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= ANSWER_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is too long"));
        }
        answer.push(stream.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&answer);
    let first = text.lines().next().unwrap_or_default();
    match first.split_whitespace().nth(1) {
        Some(code) if first.starts_with("HTTP/1.") && code.len() == 3 && code.starts_with('2') => Ok(stream),
        Some(_) if first.starts_with("HTTP/1.") => Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("it says `{first}`"))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it does not answer as a proxy does")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_read_as_others_read_it_and_shows_no_password() {
        let proxy = Proxy::new("http://ship:s%40lt@proxy.example:3128/", "intern.example, .lan,10.0.0.1").unwrap();
        assert_eq!((proxy.to_string().as_str(), proxy.credentials.as_deref()), ("proxy.example:3128", Some("c2hpcDpzQGx0")));
        assert!(!format!("{proxy:?}").contains("c2hp"));
        for (address, through) in [
            ("hq.example:443", true),
            ("intern.example:40400", false),
            ("a.intern.example:40400", false),
            ("xintern.example:40400", true),
            ("hq.lan:1", false),
            ("10.0.0.1:1", false),
            ("127.0.0.1:40400", false),
            ("[::1]:40400", false),
            ("localhost:40400", false),
        ] {
            assert_eq!(proxy.is_for(address), through, "{address}");
        }
        assert_eq!(Proxy::new("proxy", "*").unwrap().to_string(), "proxy:80");
        assert!(!Proxy::new("proxy", "*").unwrap().is_for("hq.example:443"));
        assert!(Proxy::new("socks5://proxy", "").unwrap_err().contains("socks5"));
        assert!(Proxy::new("http://", "").is_err());
    }
}

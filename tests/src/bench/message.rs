//! What client and server say to each other: as much as a small HTTP request does, of known length.

/// What the client asks.
pub const REQUEST: &[u8] =
    b"GET /status HTTP/1.1\r\nHost: echo.default.svc.cluster.local\r\nAccept: */*\r\n\r\n";

/// What the server answers.
pub const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 64\r\n\r\n\
      {\"status\":\"serving\",\"name\":\"echo\",\"zone\":\"a\",\"load\":0.25,\"ok\":true}\n";

/// More than either.
pub const ROOM: usize = 1024;

/// What a client says that only sends from then on.
pub const UPLOAD: &[u8] = b"PUT";

//! The peers' configurations. What a line is for is said where it is not a default of every guide.

use std::path::PathBuf;

use serde_json::json;

use super::super::NAME;
use super::super::stage::BACKEND;
use super::openssl_suite;

/// What they have in common.
pub(super) struct Text {
    pub(super) port: u16,
    pub(super) roots: PathBuf,
    pub(super) folder: PathBuf,
    /// Certificate and key of an HTTPS front.
    pub(super) leaf: Option<PathBuf>,
}

impl Text {
    /// `more` goes into the global section.
    pub(super) fn haproxy(&self, more: &str) -> String {
        let (port, roots, suite) = (self.port, self.roots.display(), openssl_suite());
        let front = self.leaf.as_ref().map_or_else(String::new, |leaf| {
            format!(
                " ssl crt {} alpn h2,http/1.1 ssl-min-ver TLSv1.3 ciphersuites {suite} curves P-256",
                leaf.display()
            )
        });
        format!(
            "global
  nbthread 2
  maxconn 8000
  {more}
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  # A pool for all clients, as ours has: any idle connection may be used, and none is closed for being idle.
  http-reuse always
frontend agents
  bind 127.0.0.1:{port}{front}
  default_backend intake
backend intake
  http-request set-header Host {NAME}
  server intake {BACKEND} ssl verify required ca-file {roots} verifyhost {NAME} sni str({NAME}) ssl-min-ver TLSv1.3 ciphersuites {suite} pool-max-conn -1
"
        )
    }

    pub(super) fn nginx(&self) -> String {
        let (port, roots, suite) = (self.port, self.roots.display(), openssl_suite());
        let folder = self.folder.display();
        let front = self.leaf.as_ref().map_or_else(String::new, |leaf| {
            let leaf = leaf.display();
            format!(
                "ssl_certificate {leaf}; ssl_certificate_key {leaf}; ssl_protocols TLSv1.3; ssl_ecdh_curve prime256v1;
    ssl_conf_command Ciphersuites {suite};"
            )
        });
        let listen = if self.leaf.is_some() { " ssl http2" } else { "" };
        format!(
            "daemon off;
user nobody nogroup;
worker_processes 2;
worker_rlimit_nofile 16384;
pid {folder}/pid;
error_log stderr error;
events {{ worker_connections 12000; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  # The default closes a client's connection after 1,000 requests; nobody else does that.
  keepalive_requests 1000000000; keepalive_timeout 300s;
  client_max_body_size 0;
  # More than any workload has at once (W8: 128), so that none is closed for want of room; the others have no bound.
  upstream intake {{ server {BACKEND}; keepalive 256; keepalive_requests 1000000000; keepalive_timeout 300s; }}
  server {{
    listen 127.0.0.1:{port}{listen};
    {front}
    location / {{
      proxy_pass https://intake;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header Host {NAME};
      # Bodies stream, as everywhere else; the default would write large ones to files first.
      proxy_request_buffering off;
      proxy_ssl_server_name on; proxy_ssl_name {NAME};
      proxy_ssl_verify on; proxy_ssl_trusted_certificate {roots};
      proxy_ssl_protocols TLSv1.3; proxy_ssl_conf_command Ciphersuites {suite}; proxy_ssl_conf_command Curves P-256;
    }}
  }}
}}
"
        )
    }

    /// JSON is YAML.
    pub(super) fn envoy(&self) -> String {
        let parameters = json!({
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
            "ecdh_curves": ["P-256"],
        });
        let front = self.leaf.as_ref().map(|leaf| {
            json!({
                "name": "tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    "common_tls_context": {
                        "tls_params": parameters,
                        "alpn_protocols": ["h2", "http/1.1"],
                        "tls_certificates": [{"certificate_chain": {"filename": leaf}, "private_key": {"filename": leaf}}],
                    },
                },
            })
        });
        let mut chain = json!({
            "filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "agents",
                    "route_config": {"virtual_hosts": [{
                        "name": "intake",
                        "domains": ["*"],
                        "routes": [{
                            "match": {"prefix": "/"},
                            "route": {"cluster": "intake", "host_rewrite_literal": NAME},
                        }],
                    }]},
                    "http_filters": [{
                        "name": "envoy.filters.http.router",
                        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                    }],
                },
            }],
        });
        if let Some(front) = front {
            chain["transport_socket"] = front;
        }
        let (address, port) = (BACKEND.ip().to_string(), BACKEND.port());
        json!({
            "static_resources": {
                "listeners": [{
                    "name": "agents",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": self.port}},
                    "filter_chains": [chain],
                }],
                "clusters": [{
                    "name": "intake",
                    "type": "STATIC",
                    "load_assignment": {"cluster_name": "intake", "endpoints": [{"lb_endpoints": [
                        {"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}},
                    ]}]},
                    "transport_socket": {
                        "name": "tls",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                            "sni": NAME,
                            "common_tls_context": {
                                "tls_params": parameters,
                                "validation_context": {
                                    "trusted_ca": {"filename": self.roots},
                                    "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": NAME}}],
                                },
                            },
                        },
                    },
                }],
            },
        })
        .to_string()
    }

    pub(super) fn stunnel(&self) -> String {
        format!(
            "foreground = quiet
pid =
syslog = no
[intake]
client = yes
accept = 127.0.0.1:{}
connect = {BACKEND}
sni = {NAME}
CAfile = {}
verifyChain = yes
checkHost = {NAME}
sslVersion = TLSv1.3
ciphersuites = {}
; Else every handshake begins with a group that the backend refuses.
curves = P-256
",
            self.port,
            self.roots.display(),
            openssl_suite()
        )
    }
}

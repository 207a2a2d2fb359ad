//go:build suites

package test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// serversImage has the servers below and their clients, from Debian.
const serversImage = "composure-test/servers:1"

// serversCompose has no label and declares no port: every server is found by its first bytes, or by being silent.
const serversCompose = `
services:
  client:
    image: ` + serversImage + `
    command: [sleep, infinity]
    init: true
    depends_on: {server: {condition: service_healthy}}
    volumes: ["./app:/app:ro"]
  server:
    image: ` + serversImage + `
    command: [sh, /app/start.sh]
    init: true
    volumes: ["./app:/app:ro"]
    networks:
      default: {aliases: [postgres, mariadb, redis, rabbitmq, nats, mqtt, smtp, ssh, nginx, ftp, web]}
    healthcheck: {test: [CMD, test, -e, /tmp/ready], interval: 1s, retries: 120}
`

var serversFiles = map[string]string{
	"compose.yaml": serversCompose,
	"app/start.sh": `#!/bin/sh
# Starts every server, each as its own user, and says in /tmp/ready that all answer.
set -eu
export PATH=$PATH:/usr/lib/postgresql/15/bin:/usr/sbin:/usr/lib/rabbitmq/bin

install -d -o postgres /tmp/pg
runuser -u postgres -- initdb -A trust /tmp/pg >/dev/null
echo "host all all all trust" >> /tmp/pg/pg_hba.conf
runuser -u postgres -- postgres -D /tmp/pg -c listen_addresses='*' -c unix_socket_directories=/tmp &

install -d -o mysql /run/mysqld
echo "CREATE USER app IDENTIFIED BY 'secret';" > /tmp/init.sql
mariadbd --user=mysql --bind-address=0.0.0.0 --init-file=/tmp/init.sql &

redis-server --save "" --protected-mode no --dir /tmp &

printf 'loopback_users = none\n' > /etc/rabbitmq/rabbitmq.conf
RABBITMQ_NODENAME=rabbit@localhost rabbitmq-server &

nats-server &

printf 'listener 1883\nallow_anonymous true\n' > /tmp/mosquitto.conf
mosquitto -c /tmp/mosquitto.conf &

# SMTP: mail for anybody at example.org goes to a maildir.
printf 'table all { "@" = nobody }\nlisten on 0.0.0.0\naction "keep" maildir "/tmp/mail" virtual <all>\nmatch from any for domain "example.org" action "keep"\n' > /tmp/smtpd.conf
install -d -o nobody /tmp/mail
printf 'nobody: nobody\n' > /etc/aliases
smtpd -d -f /tmp/smtpd.conf &

# SSH, with the key that the client has too.
install -d -m 755 /run/sshd
install -d -m 700 /root/.ssh
install -m 600 /app/key.pub /root/.ssh/authorized_keys
/usr/sbin/sshd -D -e &

# nginx: plain on 80, TLS of its own on 443.
openssl req -x509 -newkey rsa:2048 -nodes -keyout /tmp/tls.key -out /tmp/tls.crt -days 1 -subj /CN=nginx -addext subjectAltName=DNS:nginx 2>/dev/null
cp /tmp/tls.crt /var/www/html/
echo "hello from nginx" > /var/www/html/index.html
nginx -c /app/nginx.conf &

# FTP: passive, and the data connections must come from where the control connection does.
install -d -m 755 /var/run/vsftpd/empty /srv/ftp/pub
install -d -o ftp /srv/ftp/in
echo "by ftp" > /srv/ftp/pub/file.txt
printf 'listen=YES\nbackground=NO\nanonymous_enable=YES\nanon_upload_enable=YES\nwrite_enable=YES\nseccomp_sandbox=NO\nanon_root=/srv/ftp\npasv_min_port=40000\npasv_max_port=40009\n' > /tmp/vsftpd.conf
vsftpd /tmp/vsftpd.conf &

python3 -u /app/web.py &

for port in 5432 3306 6379 5672 4222 1883 25 22 80 443 21 8000; do
  until nc -z 127.0.0.1 $port; do sleep 0.2; done
done
touch /tmp/ready
wait
`,
	"app/nginx.conf": `events {}
http {
  access_log off;
  server { listen 80; listen 443 ssl http2; ssl_certificate /tmp/tls.crt; ssl_certificate_key /tmp/tls.key; root /var/www/html; }
}
`,
	"app/web.py": `
# Uploads, downloads, server-sent events and a long poll.
import hashlib, http.server, subprocess, threading, time

GIB = "openssl enc -aes-128-ctr -K 00000000000000000000000000000000 -iv 00000000000000000000000000000000 -in /dev/zero 2>/dev/null | head -c 1073741824"

class Web(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def do_GET(self):
        self.send_response(200)
        if self.path == "/big":
            self.send_header("Content-Length", str(1 << 30))
            self.end_headers()
            p = subprocess.Popen(GIB, shell=True, stdout=subprocess.PIPE)
            while (b := p.stdout.read(1 << 20)):
                self.wfile.write(b)
            p.wait()
        elif self.path == "/events": # server-sent events; the connection's end is theirs
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for i in range(3):
                self.wfile.write(b"id: %d\ndata: event %d\n\n" % (i, i))
                self.wfile.flush()
                acknowledged[i].wait(20)
        elif self.path.startswith("/seen/"):
            acknowledged[int(self.path[6:])].set()
            self.send_header("Content-Length", "0")
            self.end_headers()
        else: # a long poll
            time.sleep(10)
            self.send_header("Content-Length", "9")
            self.end_headers()
            self.wfile.write(b"at last!\n")
    def do_PUT(self):
        h, n = hashlib.sha256(), 0
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        while True:
            if chunked:
                left = int(self.rfile.readline(), 16)
            else:
                left = int(self.headers["Content-Length"]) - n
            if left == 0:
                break
            while left > 0:
                b = self.rfile.read(min(left, 1 << 20))
                left -= len(b)
                n += len(b)
                h.update(b)
            if chunked:
                self.rfile.readline()
        body = b"%d %s\n" % (n, h.hexdigest().encode())
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

acknowledged = [threading.Event() for _ in range(3)]
http.server.ThreadingHTTPServer(("", 8000), Web).serve_forever()
`,
	"app/nats.py": `
# What a client of NATS sends: https://docs.nats.io/reference/reference-protocols/nats-protocol
import socket
s = socket.create_connection(("nats", 4222))
lines = s.makefile("rb")
assert lines.readline().startswith(b"INFO "), "the server speaks first"
s.sendall(b'CONNECT {"verbose":false}\r\nSUB greetings 1\r\nPUB greetings 5\r\nhello\r\nPING\r\n')
got = [lines.readline().strip().decode() for _ in range(3)]
print(got)
`,
	"app/amqp.py": `
import pika
connection = pika.BlockingConnection(pika.ConnectionParameters("rabbitmq", credentials=pika.PlainCredentials("guest", "guest")))
channel = connection.channel()
channel.queue_declare("greetings")
channel.basic_publish("", "greetings", b"hello")
for _, _, body in channel.consume("greetings", auto_ack=True):
    print("got", body)
    break
connection.close()
`,
}

// gibibyte is the SHA-256 of what web.py and the upload below make.
const gibibyte = "a110c53382d90198328a45c24dfc98a504911e2abf65c16d6c879ae958528cbd"

// TestServers drives real servers with their own clients through the mesh.
func TestServers(t *testing.T) {
	p := newProject(t, serversFiles)
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(p.dir, "app", "key")).CombinedOutput(); err != nil {
		t.Fatalf("make a key: %v\n%s", err, out)
	}
	p.inject()
	p.up()
	const stream = "openssl enc -aes-128-ctr -K 00000000000000000000000000000000 -iv 00000000000000000000000000000000 -in /dev/zero 2>/dev/null | head -c 1073741824"
	const ssh = "ssh -i /tmp/key -o StrictHostKeyChecking=accept-new root@ssh "

	for _, c := range []struct {
		name, script, want string
	}{
		{"PostgreSQL", "psql -h postgres -U postgres -tAc 'SELECT 6*7'", "42"},
		{"MariaDB", "mariadb -h mariadb -u app -psecret -Ne 'SELECT 6*7'", "42"},
		{"Redis", "redis-cli -h redis INCRBY answer 42", "42"},
		{"RabbitMQ", "python3 /app/amqp.py", "got b'hello'"},
		{"NATS", "python3 /app/nats.py", "['MSG greetings 1 5', 'hello', 'PONG']"},
		{"MQTT", "mosquitto_pub -h mqtt -t greetings -m hello -r && mosquitto_sub -h mqtt -t greetings -C 1 -W 10", "hello"},
		{"SMTP", "swaks --server smtp --from a@example.org --to b@example.org --body hello", "Message accepted for delivery"},
		{"SSH", "install -m 600 /app/key /tmp/key && " + ssh + "cat /etc/os-release", "bookworm"},
		{"SSH, 100 MB up and down", "head -c 100000000 /dev/zero | " + ssh + "cat | sha256sum", "a993f8c574e0fea8c1cdcbcd9408d9e2e107ee6e4d120edcfa11decd53fa0cae"},
		{"nginx", "curl -sS http://nginx/", "hello from nginx"},
		{"TLS and HTTP/2 of its own", "curl -sS http://nginx/tls.crt -o /tmp/crt && curl -sS --cacert /tmp/crt -w 'by HTTP/%{http_version}' https://nginx/", "by HTTP/2"},
		{"FTP, extended passive", "curl -sS ftp://ftp/pub/file.txt", "by ftp"},
		{"FTP, passive", "curl -sS --disable-epsv ftp://ftp/pub/file.txt", "by ftp"},
		{"FTP, passive, up", "echo up | curl -sS -T - ftp://ftp/in/up.txt && echo sent", "sent"},
		{"1 GiB down", "curl -sS http://web:8000/big | sha256sum", gibibyte},
		{"1 GiB up", stream + " | curl -sS -T - http://web:8000/", "1073741824 " + gibibyte},
		{"server-sent events", "curl -sSN http://web:8000/events | while IFS=: read -r field value; do case $field in id) id=$value;; data) echo $value; curl -sS http://web:8000/seen/${id# };; esac; done", "event 2"},
		{"a long poll", "curl -sS http://web:8000/poll", "at last!"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := p.tryExec("client", "timeout", "120", "sh", "-c", c.script)
			if !strings.Contains(r.stdout, c.want) {
				t.Errorf("%s\nexit %d, says %.500q %s\nwant %q", c.script, r.code, r.stdout, r.stderr, c.want)
			}
		})
	}
	t.Run("the mail has arrived", func(t *testing.T) {
		eventually(t, "the mail", func() string {
			if r := p.tryExec("server", "grep", "-rhx", "hello", "/tmp/mail/new"); r.code != 0 {
				return "no mail yet: " + r.stderr
			}
			return ""
		})
	})
	t.Run("active FTP is refused", func(t *testing.T) {
		// As docs/compose.md says: to the server the client has the server's own address, not the one it asks to be called at.
		if r := p.tryExec("client", "curl", "-sS", "-m", "30", "--ftp-port", "-", "ftp://ftp/pub/file.txt"); r.code == 0 {
			t.Error("it works")
		}
	})
	t.Run("all of it went by mutual TLS", func(t *testing.T) {
		eventually(t, "metrics", func() string {
			m := p.meshctl("metrics")
			own := []string{`reporter="destination"`, `source_workload="client"`, `destination_workload="server"`}
			for _, name := range []string{"istio_tcp_connections_opened_total", "istio_requests_total"} {
				if !hasSeries(m, name, append(own, `connection_security_policy="mutual_tls"`)...) {
					return "no mutual TLS in " + name + ":\n" + m
				}
			}
			return ""
		})
		m := p.meshctl("metrics")
		for _, name := range []string{"istio_tcp_connections_opened_total", "istio_requests_total"} {
			if hasSeries(m, name, `reporter="destination"`, `destination_workload="server"`, `connection_security_policy="none"`) {
				t.Errorf("%s counts plain text:\n%s", name, m)
			}
		}
	})
}

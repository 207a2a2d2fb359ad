//go:build suites

package test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// plainFiles is a project as people have them: a web application, its worker, PostgreSQL and Redis, with
// healthchecks, conditions, a volume, a published port and not a word of a mesh.
var plainFiles = map[string]string{
	"docker-compose.yml": `
services:
  web:
    image: ` + image + `
    command: [python3, /app/web.py]
    init: true
    ports: ["127.0.0.1:0:8000"]
    environment: &env
      DATABASE: host=db user=postgres dbname=postgres
      REDIS: redis
      PYTHONUNBUFFERED: "1"
    volumes: [./app:/app:ro]
    depends_on:
      db: {condition: service_healthy}
      redis: {condition: service_started}
    healthcheck:
      test: [CMD, curl, -fsS, "http://localhost:8000/health"]
      interval: 1s
      retries: 30
  worker:
    image: ` + image + `
    command: [python3, /app/worker.py]
    init: true
    environment: *env
    volumes: [./app:/app:ro]
    depends_on:
      db: {condition: service_healthy}
      redis: {condition: service_started}
  db:
    image: ` + image + `
    user: postgres
    command:
      - sh
      - -c
      - |
        set -e
        PATH=$$PATH:/usr/lib/postgresql/15/bin
        if [ ! -s $$PGDATA/PG_VERSION ]; then
          initdb -A trust >/dev/null
          echo "host all all all trust" >> $$PGDATA/pg_hba.conf
        fi
        exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp
    environment: {PGDATA: /var/lib/postgresql/data}
    volumes: [data:/var/lib/postgresql]
    healthcheck:
      test: [CMD, pg_isready, -h, localhost]
      interval: 1s
      retries: 60
  redis:
    image: ` + image + `
    command: [redis-server, --save, "", --protected-mode, "no", --dir, /tmp]
volumes:
  data:
`,
	"app/web.py": `
import os, psycopg2, redis
from flask import Flask, request

app = Flask(__name__)
queue = redis.Redis(os.environ["REDIS"])

def db():
    c = psycopg2.connect(os.environ["DATABASE"])
    c.autocommit = True
    return c

with db() as c:
    c.cursor().execute("CREATE TABLE IF NOT EXISTS notes (text text)")

@app.get("/health")
def health():
    return "ok"

@app.post("/notes")
def add():
    queue.rpush("notes", request.get_data())
    return "queued", 202

@app.get("/notes")
def notes():
    cursor = db().cursor()
    cursor.execute("SELECT text FROM notes ORDER BY text")
    return "\n".join(r[0] for r in cursor.fetchall())

app.run(host="0.0.0.0", port=8000, threaded=True)
`,
	"app/worker.py": `
import os, psycopg2, redis

queue = redis.Redis(os.environ["REDIS"])
print("worker ready", flush=True)
while True:
    _, text = queue.blpop("notes")
    c = psycopg2.connect(os.environ["DATABASE"])
    with c:
        c.cursor().execute("INSERT INTO notes VALUES (%s)", (text.decode(),))
    c.close()
    print("stored", text, flush=True)
`,
}

// TestPlain takes a project of a user's own into the mesh and out of it again, with no label and no configuration.
func TestPlain(t *testing.T) {
	p := newProject(t, plainFiles)
	before := must(os.ReadFile(filepath.Join(p.dir, "docker-compose.yml")))
	p.inject()
	p.up()

	noted := func(url, text string) {
		t.Helper()
		resp, err := http.Post("http://"+url+"/notes", "text/plain", strings.NewReader(text))
		if err != nil {
			t.Fatalf("post a note: %v", err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusAccepted {
			t.Fatalf("post a note: %s", resp.Status)
		}
		eventually(t, "the note "+text, func() string {
			status, body := get(t, "http://"+url+"/notes")
			if status != http.StatusOK || !strings.Contains(body, text) {
				return fmt.Sprintf("status %d: %q", status, body)
			}
			return ""
		})
	}
	// docker compose port asks the application's container; the port is the sandbox's.
	noted(p.published("web-mesh-sandbox", 8000), "first, meshed")

	t.Run("PostgreSQL and Redis pass as mutual TLS", func(t *testing.T) {
		eventually(t, "metrics", func() string {
			m := p.meshctl("metrics")
			for _, to := range []string{"db", "redis"} {
				if !hasSeries(m, "istio_tcp_connections_opened_total", `reporter="destination"`, `destination_workload="`+to+`"`, `source_workload="worker"`, `connection_security_policy="mutual_tls"`) {
					return "no mutual TLS connection of worker to " + to + " in:\n" + m
				}
			}
			return ""
		})
	})
	t.Run("exec, logs, DNS and healthchecks as before", func(t *testing.T) {
		if out := p.exec("db", "psql", "-h", "/tmp", "-tAc", "SELECT count(*) FROM notes"); strings.TrimSpace(out) != "1" {
			t.Errorf("psql in db says %q", out)
		}
		if log := p.compose("logs", "--no-color", "worker"); !strings.Contains(log, "worker ready") {
			t.Errorf("logs of worker: %q", log)
		}
		for _, name := range []string{"web", "db", "redis", p.name + "-db-1"} {
			if r := p.tryExec("worker", "getent", "hosts", name); r.code != 0 {
				t.Errorf("worker can't resolve %s: %s", name, r.stderr)
			}
		}
		if out := p.exec("worker", "python3", "-c", "import requests; print(requests.get('http://web:8000/health').text)"); strings.TrimSpace(out) != "ok" {
			t.Errorf("worker → web: %q", out)
		}
		if out := p.compose("ps", "--format", "{{.Health}}", "web"); strings.TrimSpace(out) != "healthy" {
			t.Errorf("health of web is %q", out)
		}
	})
	t.Run("stop and start", func(t *testing.T) {
		p.compose("stop", "--timeout", "10")
		p.up()
		noted(p.published("web-mesh-sandbox", 8000), "second, after a stop")
	})
	t.Run("uninject from a running project keeps its data", func(t *testing.T) {
		p.meshctl("compose", "uninject")
		if _, err := os.Stat(filepath.Join(p.dir, "compose.override.yaml")); !os.IsNotExist(err) {
			t.Errorf("compose.override.yaml is still there: %v", err)
		}
		p.up("--remove-orphans")
		for line := range strings.Lines(p.compose("ps", "--all", "--format", "{{.Service}}")) {
			if s := strings.TrimSpace(line); strings.Contains(s, "mesh") || strings.Contains(s, "composure") {
				t.Errorf("service %s is still there", s)
			}
		}
		url := p.published("web", 8000)
		noted(url, "third, plain again")
		if _, body := get(t, "http://"+url+"/notes"); !strings.Contains(body, "first, meshed") {
			t.Errorf("the notes from before are gone: %q", body)
		}
	})
	if after := must(os.ReadFile(filepath.Join(p.dir, "docker-compose.yml"))); string(after) != string(before) {
		t.Error("the user's own file was changed")
	}
}

// hasSeries reports whether a series of the metric has all of the labels.
func hasSeries(metrics, name string, labels ...string) bool {
	for line := range strings.Lines(metrics) {
		if !strings.HasPrefix(line, name+"{") {
			continue
		}
		all := true
		for _, l := range labels {
			all = all && strings.Contains(line, l)
		}
		if all {
			return true
		}
	}
	return false
}

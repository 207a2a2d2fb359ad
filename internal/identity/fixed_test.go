package identity

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const localID = "spiffe://cluster.local/ns/default/sa/web"

// TestLocalCA: proxies that begin at the same moment in an empty directory trust each other.
func TestLocalCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	got := make([]*Fixed, 8)
	var all sync.WaitGroup
	for i := range got {
		all.Go(func() {
			f, err := FromLocalCA(dir, "web", localID)
			if err != nil {
				t.Error(err)
				return
			}
			got[i] = f
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	for i, f := range got {
		other := got[(i+1)%len(got)].Current()
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
			if id, err := Verify(f.Current().Certificate.Certificate, other.Roots, usage); err != nil || id.String() != localID {
				t.Errorf("the next one takes identity %d as %s, %v", i, id, err)
			}
		}
		if f.Reason() != "" || f.Status().Identity != localID || f.Workload() != "web" {
			t.Errorf("status %+v", f.Status())
		}
	}
	key, err := os.Stat(filepath.Join(dir, localKey))
	if err != nil || key.Mode().Perm() != 0o600 {
		t.Errorf("the authority's key: mode %v, %v; want 0600", key.Mode(), err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(dir), ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestFromFiles(t *testing.T) {
	dir := t.TempDir()
	f, err := FromLocalCA(filepath.Join(dir, "ca"), "web", localID)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(f.material.Certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	roots := filepath.Join(dir, "ca", localRoot)
	for file, block := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: f.material.Certificate.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read, err := FromFiles("web", cert, key, roots)
	if err != nil || read.Current().ID.String() != localID {
		t.Fatalf("FromFiles = %+v, %v", read, err)
	}
	for _, bad := range []struct{ cert, key, roots, want string }{
		{cert, key, key, "no certificate in"},
		{cert, key, "/nowhere", "roots"},
		{cert, filepath.Join(dir, "ca", localKey), roots, "cert.pem"},
		{roots, filepath.Join(dir, "ca", localKey), roots, "is a CA's"},
	} {
		if _, err := FromFiles("web", bad.cert, bad.key, bad.roots); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("FromFiles(%s, %s, %s) = %v, want an error with %q", bad.cert, bad.key, bad.roots, err, bad.want)
		}
	}
}

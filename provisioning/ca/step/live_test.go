//go:build stepca

package step_test

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tillward/tillward/provisioning/ca"
	"github.com/tillward/tillward/provisioning/ca/step"
)

// template is what docs/ca.md tells operators to give the provisioner.
const template = `{"subject": {{ toJson .Subject }}, "keyUsage": ["certSign", "crlSign"], "basicConstraints": {"isCA": true, "maxPathLen": 0}}`

// stepCA runs the step-ca that `make step-ca` has built, with one provisioner.
func stepCA(t *testing.T, c company, public map[string]string, template string) (url string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil { // it binds the port itself
		t.Fatal(err)
	}
	dir := t.TempDir()
	p8, err := x509.MarshalPKCS8PrivateKey(c.subKey)
	if err != nil {
		t.Fatal(err)
	}
	conf, err := json.Marshal(map[string]any{
		"root": put(t, filepath.Join(dir, "root.crt"), toPEM(c.root)), "crt": put(t, filepath.Join(dir, "sub.crt"), toPEM(c.sub)),
		"key":     put(t, filepath.Join(dir, "sub.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: p8})),
		"address": addr, "dnsNames": []string{"127.0.0.1"}, "logger": map[string]string{"format": "text"},
		"authority": map[string]any{"provisioners": []any{map[string]any{
			"type": "JWK", "name": "tillward", "key": public, "options": map[string]any{"x509": map[string]string{"template": template}},
			"claims": map[string]string{"defaultTLSCertDuration": "17520h", "maxTLSCertDuration": "26280h"},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	program := os.Getenv("STEP_CA")
	if program == "" {
		t.Fatal("STEP_CA does not name the program; run make step-ca")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, put(t, filepath.Join(dir, "ca.json"), conf))
	cmd.Env = append(os.Environ(), "STEPPATH="+dir)
	errs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for s := bufio.NewScanner(errs); s.Scan(); {
			t.Log(s.Text())
			if strings.Contains(s.Text(), "Serving HTTPS on") {
				close(ready)
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		_ = cmd.Wait() // killed
	})
	select {
	case <-ready:
	case <-done:
		t.Fatal("step-ca ended")
	case <-time.After(time.Minute):
		t.Fatal("step-ca does not serve")
	}
	return "https://" + addr
}

func TestRealStepCA(t *testing.T) {
	key := newKey(t)
	public, private := jwk(t, key)
	c := newCompany(t)
	url := stepCA(t, c, public, template)
	dir := t.TempDir()
	conf := step.Config{
		URL: url, Root: put(t, filepath.Join(dir, "root.pem"), toPEM(c.root)), Provisioner: "tillward",
		Key: put(t, filepath.Join(dir, "key.json"), private), Life: 720 * hour,
	}
	upstream := open(t, conf)
	works(t, upstream, c.root)

	list, err := upstream.Sign(t.Context(), request(t, c.root))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(list)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(cert.NotAfter); left < 719*hour || left > 721*hour {
		t.Errorf("the certificate lasts %s, want the 720 hours asked for", left)
	}

	// Its twins: another key is not let in, and more than the provisioner may give is not given.
	_, stranger := jwk(t, newKey(t))
	bad := conf
	bad.Key = put(t, filepath.Join(dir, "stranger.json"), stranger)
	if _, err := open(t, bad).Sign(t.Context(), request(t, c.root)); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("another key: got %v, want 401", err)
	}
	bad = conf
	bad.Life = 10 * 365 * 24 * hour
	if _, err := open(t, bad).Sign(t.Context(), request(t, c.root)); err == nil || !strings.Contains(err.Error(), "40") {
		t.Errorf("too long a life: got %v, want a refusal", err)
	}
}

// What step ca init makes may have no issuing certificate below it, and without
// the template a provisioner's certificates sign nothing. Both are told.
func TestRealStepCAAsItComes(t *testing.T) {
	key := newKey(t)
	public, private := jwk(t, key)
	c := newCompany(t)
	short := c
	short.sub = signed(t, authority("Bank Issuing", 0), c.root, c.subKey.Public(), c.rootKey)
	for name, as := range map[string]struct {
		company
		template, why string
	}{
		"path length 0": {short, template, "path length"},
		"no template":   {c, "", "not that of an authority"},
	} {
		url := stepCA(t, as.company, public, as.template)
		dir := t.TempDir()
		upstream := open(t, step.Config{
			URL: url, Root: put(t, filepath.Join(dir, "root.pem"), toPEM(c.root)), Provisioner: "tillward", Key: put(t, filepath.Join(dir, "key.json"), private),
		})
		put(t, filepath.Join(dir, "tenant.pem"), toPEM(c.root))
		if _, err := ca.Open(dir, "tenant", ca.Options{Upstream: upstream}); !errors.Is(err, ca.ErrCertificate) || !strings.Contains(err.Error(), as.why) {
			t.Errorf("%s: got %v, want ErrCertificate for: %s", name, err, as.why)
		}
	}
}

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestReleasesDocument runs every command of docs/releases.md, from the first
// to the last, as somebody would who follows it. The fleet service is played by
// what it would do with its online key: sign what is published, and check it as
// a device.
func TestReleasesDocument(t *testing.T) {
	doc, err := os.ReadFile("../../../docs/releases.md")
	if err != nil {
		t.Fatal(err)
	}
	var script bytes.Buffer
	script.WriteString("set -eux\nPATH=$PWD/service:$PATH\n")
	for _, b := range blocks(t, doc, 10) {
		script.WriteString(b)
		script.WriteString("[ -e 1.root.json ] || cp repo/metadata/1.root.json . || true\n")
	}
	dir := t.TempDir()
	for name, content := range map[string]string{"doc.sh": script.String(), "docs.txtar": fmt.Sprintf(docs, runtime.GOARCH)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	testscript.Run(t, testscript.Params{Dir: dir, Setup: hurry, Cmds: map[string]func(*testscript.TestScript, bool, []string){
		"softtoken": softToken, "signers": signers, "bundle": newBundle,
		"take": func(ts *testscript.TestScript, _ bool, _ []string) { // the commands, with the module where it is here
			s := strings.ReplaceAll(script.String(), "/usr/lib/softhsm/libsofthsm2.so", ts.Getenv("MODULE"))
			ts.Check(os.WriteFile(ts.MkAbs("doc.sh"), []byte(s), 0o600))
		},
	}})
}

// blocks are the commands of a page.
func blocks(t *testing.T, doc []byte, least int) (list []string) {
	t.Helper()
	for _, b := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllSubmatch(doc, -1) {
		list = append(list, string(b[1]))
	}
	if len(list) < least {
		t.Fatalf("%d blocks of commands, want %d at least", len(list), least)
	}
	return list
}

// TestBootReferencesDocument does the same with docs/boot-references.md, on a
// release machine that has what was copied from a box.
func TestBootReferencesDocument(t *testing.T) {
	doc, err := os.ReadFile("../../../docs/boot-references.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := "set -eux\nPATH=$PWD/service:$PATH\n" + strings.Join(blocks(t, doc, 7), "")
	for name, content := range map[string]string{"doc.sh": script, "boot.txtar": bootDocs} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	testscript.Run(t, testscript.Params{Dir: dir, Setup: hurry, Cmds: map[string]func(*testscript.TestScript, bool, []string){
		"unified": unified, "program": program,
		"take": func(ts *testscript.TestScript, _ bool, _ []string) {
			ts.Check(os.WriteFile(ts.MkAbs("doc.sh"), []byte(script), 0o600))
		},
	}})
}

const bootDocs = `
unified box os/1.2.3
cp box/log log
cp box/pcrs pcrs
cp box/log base.log
cp box/image.efi base.efi
program linuxx64.efi.stub .text=stub '.sdmagic=#### LoaderInfo: systemd-stub 257.9 ####'
program bzImage .text=kernel
chmod 755 service/tillward
exec tillward-provision repo init --dir repo --keys keys
take
exec sh doc.sh
exec tillward-provision boot show pos500-os-1.3.0.json --key seal.pem
stdout '^approval   spool in PCR 4, 7, 9, 11 up to floor 0: policy'
exec tillward-provision repo show --dir repo
stdout '^boot/POS_500/os_1.3.0.json'

-- service/tillward --
#!/bin/sh
[ "$1 $2" = "release publish" ]
-- initrd.img --
an initrd
-- cmdline --
quiet root=x
-- os-release --
ID=tillward
`

const docs = `
softtoken
chmod 600 pin
chmod 755 till/bin/check
chmod 755 pinpad/run
chmod 755 service/tillward
bundle image.raucb pos500 7.0.0 verity
mkdir service/keys
signers service/keys/timestamp
take
exec sh doc.sh
exists repo/metadata/103.root.json
! exists repo/metadata/timestamp.json
exec tillward-provision repo verify --dir published --root repo/metadata/103.root.json
exec tillward-provision repo show --dir repo
stdout '^agent/1.2.3/tillward-agent-linux-%s'
stdout '^os/POS_500/beta/7.0.0/bundle.raucb'
stdout '^ops/main/till/4.0.0/tree.tar'
stdout '^ops/main/pinpad/1.0.0/script.tar'

-- service/tillward --
#!/bin/sh
set -eu
case "$1 $2" in
"release online-key") cat service/keys/timestamp.pub ;;
"release publish")
	mkdir -p published
	cp -r repo/metadata repo/targets published/
	tillward-provision release refresh --repo published --keys service/keys
	tillward-provision repo verify --dir published ;;
*) echo "tillward $*: not played" >&2; exit 2 ;;
esac
-- pin --
1234
-- bin/tillward-agent --
an agent
-- till/bin/check --
#!/bin/sh
-- till/tillward.json --
{"health": ["./bin/check"]}
-- settings.json --
{"update.hours": "22:00-05:00"}
-- pinpad/run --
#!/bin/sh
`

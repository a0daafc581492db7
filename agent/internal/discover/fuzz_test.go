package discover

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/url"
	"strings"
	"testing"
)

var pinned = Service{Enrol: "https://image.example:8444", ServerName: "fleet.example", Roots: "/roots.pem", Claim: "IMAGE-1"}

// sane wants what any source may change, and nothing else.
func sane(t *testing.T, s Service) {
	t.Helper()
	u, err := url.Parse(s.Enrol)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		t.Errorf("enrol %q, %v", s.Enrol, err)
	}
	if again, err := address(s.Enrol); err != nil || again != s.Enrol {
		t.Errorf("%q read again: %q, %v", s.Enrol, again, err)
	}
	if s.Roots != pinned.Roots {
		t.Errorf("roots became %q", s.Roots)
	}
}

func FuzzFile(f *testing.F) {
	f.Add([]byte("enrol = \"https://x.example:8444\"\nserver_name = \"y.example\"\nclaim = \"ABCD-EFGH\"\n"))
	f.Add([]byte("enrol = \"https://[::1]:8444/\"\n"))
	f.Add([]byte("enrol = \"https://x.example:1\"\nroots = \"x\"\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := pinned
		if err := readFile(&s, b); err != nil {
			if s != pinned {
				t.Errorf("a refused file changed %+v", s)
			}
			return
		}
		sane(t, s)
		if !host(s.ServerName) || !claimCode(s.Claim) {
			t.Errorf("got %+v", s)
		}
	})
}

func FuzzLease(f *testing.F) {
	f.Add([]byte("ADDRESS=10.0.0.2\nOPTION_143=001968747470733a2f2f782e6578616d706c653a38343434\n"))
	f.Add([]byte("sztp=001968747470733a2f2f782e6578616d706c653a38343434"))
	f.Add([]byte("lease {\n  option sztp-redirect 0:19:68:74:74:70:73:3a:2f:2f:78:2e:65:78:61:6d:70:6c:65:3a:38:34:34:34;\n}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := pinned
		err := readLease(&s, b)
		if err == nil {
			sane(t, s)
		}
		s.Enrol = pinned.Enrol
		if s != pinned {
			t.Errorf("a lease changed more than the address: %+v", s)
		}
		if v, ok := option(string(b)); ok {
			if raw, err := octets(v); err == nil && !strings.Contains(v, ":") && !strings.EqualFold(hex.EncodeToString(raw), v) {
				t.Errorf("%q became %x", v, raw)
			}
		}
	})
}

func FuzzRedirects(f *testing.F) {
	f.Add([]byte("\x00\x01a\x00\x02bc"))
	f.Add([]byte("\x00\x00"))
	f.Add([]byte("\xff\xffa"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := redirects(b)
		if err != nil {
			return
		}
		var again []byte
		for _, u := range list {
			again = append(binary.BigEndian.AppendUint16(again, uint16(len(u))), u...)
		}
		if !bytes.Equal(again, b) {
			t.Errorf("%x became %q", b, list)
		}
	})
}

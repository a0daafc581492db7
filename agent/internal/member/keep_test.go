package member_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tillward/tillward/agent/internal/member"
	"github.com/tillward/tillward/provisioning/enrol"
)

const life = 30 * 24 * time.Hour

// chain is a certificate that begins now.
func chain(t *testing.T, serial int64, life time.Duration) [][]byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "d"}, NotBefore: time.Now(), NotAfter: time.Now().Add(life)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return [][]byte{der}
}

func identityOf(t *testing.T) member.Identity {
	t.Helper()
	id, err := member.Of(member.Identity{URL: "https://x:1"}.With(enrol.Result{
		Device: "d", Chain: chain(t, 1, life), Recovery: chain(t, 100, 10*life), RecoveryKey: []byte("rec"),
		Brokers: []string{"b:1"}, OrderKeys: []enrol.OrderKey{{ID: "k"}}, AK: []byte("ak-1"),
	}))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// service renews, or does not.
type service struct {
	t       *testing.T
	began   time.Time
	renewed []time.Duration // since began
	rotated []time.Duration
	shown   []string // serial number and AK of each identity in use
	audit   []string
	fail    func(n int) error // of the n-th renewal
	wish    time.Duration     // when another certificate is asked for; 0: never
}

func (s *service) Renew(_ context.Context, have enrol.Result) (enrol.Result, error) {
	s.renewed = append(s.renewed, time.Since(s.began))
	if s.fail != nil {
		if err := s.fail(len(s.renewed)); err != nil {
			return have, err
		}
	}
	have.Chain = chain(s.t, int64(1+len(s.renewed)), life)
	return have, nil
}

func (s *service) RotateAK(_ context.Context, have enrol.Result) (enrol.Result, error) {
	s.rotated = append(s.rotated, time.Since(s.began))
	have.AK = fmt.Appendf(nil, "ak-%d", 1+len(s.rotated))
	return have, nil
}

// keep runs a keeper until something happens, or for the time.
func keep(t *testing.T, s *service, rotate, how time.Duration) error {
	t.Helper()
	s.t, s.began = t, time.Now()
	k := (&member.Keeper{
		Renewer: s, Rotate: rotate, Log: slog.New(slog.DiscardHandler),
		Changed: func(id member.Identity) {
			s.shown = append(s.shown, fmt.Sprintf("%s %s", id.Leaf().SerialNumber, id.AK))
		},
		Record: func(_ context.Context, kind, severity, _ string, detail map[string]string) {
			s.audit = append(s.audit, kind+" "+severity+" "+detail["check"])
		},
	}).Keep(identityOf(t))
	ctx, cancel := context.WithTimeout(t.Context(), how)
	defer cancel()
	if s.wish > 0 {
		time.AfterFunc(s.wish, func() {
			k.Renew()
			k.Renew() // one wish
		})
	}
	return k.Run(ctx)
}

// TestClockIsSetLater: a till that started in 1970 has its clock put right while
// it runs. It must not sleep through the life of its certificate.
func TestClockIsSetLater(t *testing.T) {
	if got := member.Sleep(time.Now().AddDate(56, 0, 0)); got > time.Hour {
		t.Errorf("sleeps for %s, want it to look at the clock again within an hour", got)
	}
	if got := member.Sleep(time.Now().Add(time.Minute)); got > time.Minute {
		t.Errorf("sleeps for %s, want a minute", got)
	}
}

// TestRenewsAfterAThird follows a device for three months.
func TestRenewsAfterAThird(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{}
		if err := keep(t, s, 0, 3*life); err != nil {
			t.Fatal(err)
		}
		if len(s.renewed) < 7 || len(s.renewed) > 9 || len(s.shown) != len(s.renewed) {
			t.Fatalf("renewed %d times in three lives, %d shown, want once a third", len(s.renewed), len(s.shown))
		}
		if first := s.renewed[0]; first < life/3 || first > life/3+life/30 {
			t.Errorf("first renewal after %s, want a third of %s, or a little later", first, life)
		}
		if s.rotated != nil || s.audit[0] != "identity.renewed info " {
			t.Errorf("rotated %v, audit %q", s.rotated, s.audit)
		}
	})
}

// TestRenewalIsTriedAgain has a service that is away for two days, then turns
// the device down twice, then gives in.
func TestRenewalIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{fail: func(n int) error {
			switch {
			case n < 15:
				return errors.New("no route")
			case n < 17:
				return enrol.Refuse("boot.unknown-event", "an event nobody knows")
			}
			return nil
		}}
		if err := keep(t, s, 0, life/2+life/30+4*24*time.Hour); err != nil {
			t.Fatal(err)
		}
		if len(s.shown) == 0 || s.shown[0] != "18 ak-1" {
			t.Errorf("shown %q after %d tries", s.shown, len(s.renewed))
		}
		if gap := s.renewed[1] - s.renewed[0]; gap < 30*time.Second || gap > time.Minute {
			t.Errorf("second try after %s", gap)
		}
		if gap := s.renewed[14] - s.renewed[13]; gap < 3*time.Hour || gap > 6*time.Hour {
			t.Errorf("fifteenth try after %s, want it to grow up to 6 h", gap)
		}
		if want := []string{"identity.refused warn boot.unknown-event", "identity.renewed info "}; !slices.Equal(s.audit, want) {
			t.Errorf("audit %q, want %q: a refusal once", s.audit, want)
		}
	})
}

// TestLongExpired ends when the certificate does, so that the device enrols.
func TestLongExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{fail: func(int) error { return errors.New("no route") }}
		if err := keep(t, s, 0, 2*life); !errors.Is(err, member.ErrEnded) || time.Since(s.began) < life {
			t.Errorf("got %v after %s, want ErrEnded at the end", err, time.Since(s.began))
		}
	})
}

// TestKeysGone ends at once: no renewal helps a TPM that was cleared.
func TestKeysGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{fail: func(int) error { return enrol.ErrKeys }}
		if err := keep(t, s, 0, 2*life); !errors.Is(err, enrol.ErrKeys) || len(s.renewed) != 1 {
			t.Errorf("got %v after %d tries, want ErrKeys after one", err, len(s.renewed))
		}
	})
}

// TestRenewNow is the service's wish, whatever the age.
func TestRenewNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{wish: time.Hour}
		if err := keep(t, s, 0, life/6); err != nil {
			t.Fatal(err)
		}
		if len(s.renewed) == 0 || len(s.renewed) > 2 || s.renewed[0] != time.Hour {
			t.Errorf("renewed at %v, want after an hour", s.renewed)
		}
	})
}

// TestAKRotation changes the attestation key when it is old, and not before.
func TestAKRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{}
		if err := keep(t, s, 20*24*time.Hour, 2*life); err != nil {
			t.Fatal(err)
		}
		if want := []time.Duration{20 * 24 * time.Hour, 40 * 24 * time.Hour}; !slices.Equal(s.rotated[:2], want) {
			t.Errorf("rotated at %v, want %v", s.rotated, want)
		}
		if !slices.Contains(s.audit, "identity.rotated info ") {
			t.Errorf("audit %q", s.audit)
		}
		last := s.shown[len(s.shown)-1]
		if last[len(last)-4:] == "ak-1" {
			t.Errorf("the AK in use is still the first: %q", s.shown)
		}
	})
}

// TestHalfRenewed keeps what came when the boot is not good enough for a
// member's certificate: the recovery certificate.
func TestHalfRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{}
		half := &halfway{s}
		s.t, s.began = t, time.Now()
		var got []member.Identity
		k := (&member.Keeper{
			Renewer: half, Log: slog.New(slog.DiscardHandler), Changed: func(id member.Identity) { got = append(got, id) },
			Record: func(_ context.Context, kind, _, _ string, detail map[string]string) {
				s.audit = append(s.audit, kind+" "+detail["check"])
			},
		}).Keep(identityOf(t))
		ctx, cancel := context.WithTimeout(t.Context(), life/3+life/30+time.Minute)
		defer cancel()
		if err := k.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 || got[0].Rescue().SerialNumber.Int64() != 200 || got[0].Leaf().SerialNumber.Int64() != 1 {
			t.Errorf("got %d identities, want one with another recovery certificate", len(got))
		}
		if !slices.Equal(s.audit, []string{"identity.refused boot.rejected-event"}) {
			t.Errorf("audit %q", s.audit)
		}
	})
}

type halfway struct{ *service }

func (h *halfway) Renew(_ context.Context, have enrol.Result) (enrol.Result, error) {
	have.Recovery = chain(h.t, 200, 10*life)
	return have, enrol.Refuse("boot.rejected-event", "a rejected event")
}

// TestIdentity writes an identity and reads it, and refuses what no member can
// live on.
func TestIdentity(t *testing.T) {
	id := identityOf(t)
	got, err := member.Parse(id.Bytes())
	if err != nil || string(got.Bytes()) != string(id.Bytes()) || got.URL != id.URL || !got.AKSince.Equal(id.AKSince) || got.AKSince.IsZero() {
		t.Errorf("got %+v, %v", got, err)
	}
	now := time.Now()
	if got.Ended(now) || !got.Ended(now.Add(life+time.Hour)) || !got.Rescuable(now.Add(2*life)) || got.Rescuable(now.Add(11*life)) {
		t.Error("the ends of the certificates are read wrongly")
	}
	for name, change := range map[string]func(*member.Identity){
		"no certificate":  func(id *member.Identity) { id.Chain = nil },
		"bad certificate": func(id *member.Identity) { id.Chain = [][]byte{{1}} },
		"bad recovery":    func(id *member.Identity) { id.Recovery = [][]byte{{1}} },
		"no broker":       func(id *member.Identity) { id.Brokers = nil },
		"no order key":    func(id *member.Identity) { id.OrderKeys = nil },
	} {
		bad := identityOf(t)
		change(&bad)
		if _, err := member.Parse(bad.Bytes()); !errors.Is(err, member.ErrIncomplete) {
			t.Errorf("%s: got %v, want ErrIncomplete", name, err)
		}
	}
	if _, err := member.Parse([]byte("{")); !errors.Is(err, member.ErrIncomplete) {
		t.Errorf("torn: got %v", err)
	}
	bare := identityOf(t)
	bare.Recovery = nil
	if bare, _ = member.Of(bare); bare.Rescuable(now) || bare.Rescue() != nil {
		t.Error("a recovery certificate that is not there can be shown")
	}
}

// TestClockAhead: certificates that have ended by the clock of the box when they
// come are no reason to ask for one after the other without a pause.
func TestClockAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{t: t, began: time.Now()}
		k := (&member.Keeper{
			Renewer: stale{s}, Log: slog.New(slog.DiscardHandler), Changed: func(member.Identity) {},
			Record: func(context.Context, string, string, string, map[string]string) {},
		}).Keep(identityOf(t))
		k.Renew()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := k.Run(ctx); err != nil && !errors.Is(err, member.ErrEnded) {
			t.Fatal(err)
		}
		if len(s.renewed) > 11 {
			t.Errorf("asked %d times in 10 s", len(s.renewed))
		}
	})
}

// stale issues certificates that have ended.
type stale struct{ *service }

func (s stale) Renew(_ context.Context, have enrol.Result) (enrol.Result, error) {
	s.renewed = append(s.renewed, time.Since(s.began))
	have.Chain = chain(s.t, int64(1+len(s.renewed)), -time.Hour)
	return have, nil
}

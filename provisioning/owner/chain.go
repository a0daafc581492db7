package owner

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"slices"
	"time"
)

// Verify checks the whole chain from the vendor's key on and returns whose the
// device is. It must not be older than, nor differ from, what was seen before:
// an owner of the past holds a valid chain that ends with him, and one who
// sells twice makes two; seen tells them from the true one. An acceptance that
// claims a time after now is ErrEarly, so a wrong clock only ever refuses.
//
// Errors: ErrMalformed, ErrVersion, ErrLimit, ErrSignature, ErrState,
// ErrSealed, ErrEarly, ErrStale.
func (v Voucher) Verify(vendor ed25519.PublicKey, now time.Time, seen Mark) (State, error) {
	if err := v.check(); err != nil {
		return State{}, err
	}
	if len(vendor) != ed25519.PublicKeySize || !ed25519.Verify(vendor, v.root(nil), v.Signature) {
		return State{}, fmt.Errorf("voucher of %s: not by this vendor: %w", v.Device, ErrSignature)
	}
	s := State{
		Owner: Party{Key: vendor, Name: v.Vendor}, MayTransfer: true, Since: time.Unix(v.MadeAt, 0).UTC(),
		Mark: Mark{Head: v.head(0)}, from: vendor, last: v.MadeAt,
	}
	known := len(seen.Head) == 0 && seen.Count == 0 || seen.covers(s.Mark)
	for i, e := range v.Entries {
		if err := s.step(vendor, e, now); err != nil {
			return State{}, fmt.Errorf("voucher of %s: entry %d (%s): %w", v.Device, i+1, e.Kind, err)
		}
		s.Mark = Mark{Count: i + 1, Head: v.head(i + 1)}
		known = known || seen.covers(s.Mark)
	}
	if !known {
		return State{}, fmt.Errorf("voucher of %s: seen up to %s: %w", v.Device, seen, ErrStale)
	}
	return s, nil
}

func (m Mark) covers(n Mark) bool { return m.Count == n.Count && bytes.Equal(m.Head, n.Head) }

// step checks one entry against the state before it and takes it in.
func (s *State) step(vendor ed25519.PublicKey, e Entry, now time.Time) error {
	if !bytes.Equal(e.Prev, s.Mark.Head) {
		return fmt.Errorf("does not follow the one before: %w", ErrSignature)
	}
	if e.At < s.last {
		return fmt.Errorf("older than the one before: %w", ErrMalformed)
	}
	signer, err := s.may(vendor, e, now)
	if err != nil {
		return err
	}
	if !ed25519.Verify(signer, e.statement(nil), e.Signature) {
		return fmt.Errorf("not by key %s: %w", keyID(signer), ErrSignature)
	}
	s.last = e.At
	switch e.Kind {
	case Offer, Override:
		s.Pending = &Pending{
			To: *e.To, Override: e.Kind == Override, IssuedAt: time.Unix(e.At, 0).UTC(), NotBefore: time.Unix(e.NotBefore, 0).UTC(),
			MayTransfer: e.MayTransfer,
		}
	case Accept:
		s.from = s.Owner.Key
		if s.Pending.Override {
			s.from = vendor
		}
		s.Owner, s.MayTransfer, s.Since, s.Pending = s.Pending.To, s.Pending.MayTransfer, time.Unix(e.At, 0).UTC(), nil
	case Object:
		s.Pending = nil
	}
	return nil
}

// may returns whose signature makes e a valid next statement.
func (s *State) may(vendor ed25519.PublicKey, e Entry, now time.Time) (ed25519.PublicKey, error) {
	switch e.Kind {
	case Offer:
		if s.Pending != nil {
			return nil, fmt.Errorf("an %s is open, object to it first: %w", s.Pending.kind(), ErrState)
		}
		if s.Mark.Count >= MaxEntries-reserved {
			return nil, fmt.Errorf("%d entries; only the vendor can go on: %w", s.Mark.Count, ErrLimit)
		}
		if !s.MayTransfer && !s.from.Equal(e.To.Key) {
			return nil, ErrSealed
		}
		if e.NotBefore < e.At {
			return nil, fmt.Errorf("effective before it was made: %w", ErrMalformed)
		}
		return s.Owner.Key, nil
	case Override:
		// An open offer does not stop it: its receiver may be who is lost.
		if s.Pending != nil && s.Pending.Override {
			return nil, fmt.Errorf("an override is open: %w", ErrState)
		}
		if e.NotBefore-e.At < int64(MinWait/time.Second) {
			return nil, fmt.Errorf("waits less than %d days: %w", MinWait/(24*time.Hour), ErrEarly)
		}
		return vendor, nil
	case Accept:
		if s.Pending == nil {
			return nil, fmt.Errorf("nothing to accept: %w", ErrState)
		}
		if first := max(e.At, s.Pending.NotBefore.Unix()); e.At < s.Pending.NotBefore.Unix() || now.Unix() < first {
			return nil, fmt.Errorf("not before %s: %w", time.Unix(first, 0).UTC().Format(time.RFC3339), ErrEarly)
		}
		return s.Pending.To.Key, nil
	case Object:
		if s.Pending == nil {
			return nil, fmt.Errorf("nothing to object to: %w", ErrState)
		}
		return s.Owner.Key, nil
	}
	return nil, fmt.Errorf("no such statement: %w", ErrMalformed)
}

func (p *Pending) kind() Kind {
	if p.Override {
		return Override
	}
	return Offer
}

// extend adds a statement, signed with key, and checks the whole chain anew.
// The input is left as it is.
func (v Voucher) extend(vendor ed25519.PublicKey, key ed25519.PrivateKey, e Entry, now time.Time) (Voucher, error) {
	s, err := v.Verify(vendor, now, Mark{})
	if err != nil {
		return Voucher{}, err
	}
	signer, err := s.may(vendor, e, now)
	if err != nil {
		return Voucher{}, fmt.Errorf("%s: %w", e.Kind, err)
	}
	if pub := key.Public().(ed25519.PublicKey); !signer.Equal(pub) {
		return Voucher{}, fmt.Errorf("%s: this takes key %s, not %s: %w", e.Kind, keyID(signer), keyID(pub), ErrSignature)
	}
	e.Prev = s.Mark.Head
	e.Signature = ed25519.Sign(key, e.statement(nil))
	v.Entries = append(slices.Clip(v.Entries), e)
	if _, err := v.Verify(vendor, now, s.Mark); err != nil {
		return Voucher{}, err
	}
	return v, nil
}

// Terms are the conditions of an offer.
type Terms struct {
	NotBefore   time.Time // when it may be accepted; zero for at once
	MayTransfer bool      // the next owner may pass the device on; else he may only give it back
}

// Transfer offers the device to another party, signed by its owner - at first
// the vendor. Nothing changes before To accepts. Errors: those of Verify.
func (v Voucher) Transfer(vendor ed25519.PublicKey, owner ed25519.PrivateKey, to Party, t Terms, now time.Time) (Voucher, error) {
	e := Entry{Kind: Offer, At: now.Unix(), To: &to, NotBefore: now.Unix(), MayTransfer: t.MayTransfer}
	if !t.NotBefore.IsZero() {
		e.NotBefore = t.NotBefore.Unix()
	}
	return v.extend(vendor, owner, e, now)
}

// Accept takes what is offered, signed by whom it is offered to: from now on
// the device is his. Errors: those of Verify; ErrEarly before its time.
func (v Voucher) Accept(vendor ed25519.PublicKey, next ed25519.PrivateKey, now time.Time) (Voucher, error) {
	return v.extend(vendor, next, Entry{Kind: Accept, At: now.Unix()}, now)
}

// Override gives the device of a lost owner to another party, signed by the
// vendor. To may accept from effective on, MinWait from now at the earliest,
// unless the owner objects. Errors: those of Verify; ErrEarly for a shorter
// wait.
func (v Voucher) Override(vendor ed25519.PrivateKey, to Party, effective, now time.Time) (Voucher, error) {
	e := Entry{Kind: Override, At: now.Unix(), To: &to, NotBefore: effective.Unix(), MayTransfer: true}
	return v.extend(vendor.Public().(ed25519.PublicKey), vendor, e, now)
}

// Object voids the open offer or override, signed by the owner: he is not lost,
// or thought better of it. Errors: those of Verify.
func (v Voucher) Object(vendor ed25519.PublicKey, owner ed25519.PrivateKey, now time.Time) (Voucher, error) {
	return v.extend(vendor, owner, Entry{Kind: Object, At: now.Unix()}, now)
}

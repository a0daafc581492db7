package counterday

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/tillward/tillward/simulator/emulator"
)

const (
	leftOpen  = 800 * time.Millisecond // as the till is configured; a sale is far quicker
	saleOpen  = 40 * time.Millisecond  // the drawer at a sale
	printIn   = 10 * time.Second
	watchEach = 2 * time.Millisecond
)

// receipt is a job as a POS application composes it.
func receipt(n, lines int, kick bool) string {
	var b strings.Builder
	b.WriteString("\x1b@\x1ba\x01\x1b!\x30TILLWARD STORE\n\x1b!\x00\x1ba\x00")
	for i := range lines - 3 {
		fmt.Fprintf(&b, "%-30s %8.2f\n", fmt.Sprintf("Item %d of receipt %d", i+1, n), float64(i)+0.99)
	}
	b.WriteString("\x1bE\x01TOTAL\n\x1bE\x00Thank you!\n\x1dV\x00")
	if kick {
		b.WriteString("\x1bp\x00\x19\xfa")
	}
	return b.String()
}

// proof is what the agent answers to a job.
type proof struct {
	Printed   bool   `json:"printed"`
	Confirmed bool   `json:"confirmed"`
	Code      string `json:"code"`
}

// print hands a job to the agent's print socket, as a POS application does that
// wants to know what became of it.
func (d *day) print(ctx context.Context, job string) (proof, error) {
	var p proof
	ctx, cancel := context.WithTimeout(ctx, printIn)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", d.till.Counter().Proof)
	if err != nil {
		return p, fmt.Errorf("print socket: %w", err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if _, err := io.WriteString(conn, job); err != nil {
		return p, fmt.Errorf("print socket: %w", err)
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	if err := json.NewDecoder(conn).Decode(&p); err != nil {
		return p, fmt.Errorf("print socket: %w", err)
	}
	return p, nil
}

// sell prints the receipts of the day at their times, scans what is sold and
// opens the drawer for those who pay cash.
func (d *day) sell(ctx context.Context) error {
	duty := d.duty()
	for i, s := range duty {
		if err := d.at(ctx, s.at); err != nil {
			return err
		}
		if err := d.sale(ctx, i+1, s); err != nil {
			return err
		}
	}
	return nil
}

// sale is one customer. What did not come out is printed again.
func (d *day) sale(ctx context.Context, n int, s visit) error {
	c := d.till.Counter()
	if err := d.scan(s.scans); err != nil {
		return err
	}
	d.counter.Lock()
	defer d.counter.Unlock()
	for patience := time.Now().Add(printIn); ; {
		p, err := d.print(ctx, receipt(n, s.lines, s.cash))
		if err != nil {
			return err
		}
		if p.Printed {
			d.count(&d.sales)
			break
		}
		d.count(&d.reprints)
		if !c.Printer.Has(emulator.PaperEnd) { // plugged in again, and not found yet
			if time.Now().After(patience) {
				return fmt.Errorf("receipt %d does not come out (%s), and the printer is well", n, p.Code)
			}
			if err := wait(ctx, 100*time.Millisecond); err != nil {
				return err
			}
			continue
		}
		d.say("receipt %d did not come out: %s", n, p.Code)
		if err := d.changeRoll(ctx); err != nil {
			return err
		}
	}
	if !s.cash {
		return nil
	}
	if err := d.drawer(ctx, true); err != nil {
		return err
	}
	if err := wait(ctx, saleOpen); err != nil {
		return err
	}
	c.Printer.Set(emulator.DrawerOpen, false)
	return nil
}

// drawer waits until it is open, or shut.
func (d *day) drawer(ctx context.Context, open bool) error {
	ctx, cancel := context.WithTimeout(ctx, printIn)
	defer cancel()
	for d.till.Counter().Printer.Has(emulator.DrawerOpen) != open {
		if err := wait(ctx, watchEach); err != nil {
			return fmt.Errorf("the drawer did not become open=%v: %w", open, err)
		}
	}
	return nil
}

// changeRoll is what the cashier does when the paper is out.
func (d *day) changeRoll(ctx context.Context) error {
	if err := wait(ctx, heldAtMost); err != nil {
		return err
	}
	c := d.till.Counter()
	d.mu.Lock()
	for _, f := range d.natural {
		f.ended = time.Now()
	}
	d.mu.Unlock()
	c.Printer.LoadRoll(0)
	d.say("a new roll")
	return wait(ctx, heldAtMost/2)
}

// morning is a printer without paper, and then the roll that the predictions
// are about.
func (d *day) morning(_ context.Context, on bool) error {
	c := d.till.Counter()
	if on {
		c.Printer.Set(emulator.PaperEnd, true)
		return nil
	}
	c.Printer.LoadRoll(c.Roll)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rolled = time.Now()
	return nil
}

// watchRoll notes when the paper runs low and when it has run out.
func (d *day) watchRoll(ctx context.Context) error {
	c := d.till.Counter()
	for {
		d.mu.Lock()
		if !d.rolled.IsZero() && d.ended.IsZero() {
			if d.natural[0].begun.IsZero() && c.Printer.Has(emulator.NearEnd) {
				d.natural[0].begun = c.Printer.Came(emulator.NearEnd)
			}
			if c.Printer.Has(emulator.PaperEnd) {
				d.ended = c.Printer.Came(emulator.PaperEnd)
				d.natural[1].begun = d.ended
			}
		}
		d.mu.Unlock()
		if wait(ctx, watchEach) != nil {
			return nil
		}
	}
}

// predictions looks at what the service says about the paper, as long as the
// roll lasts.
func (d *day) predictions(ctx context.Context) error {
	for {
		if wait(ctx, 500*time.Millisecond) != nil {
			return nil
		}
		d.mu.Lock()
		over, before := !d.ended.IsZero(), d.rolled.IsZero()
		d.mu.Unlock()
		switch {
		case over:
			return nil
		case before:
			continue
		}
		used := d.till.Counter().Roll - d.till.Counter().Printer.Paper()
		now := time.Now()
		p, err := d.peripheral(ctx, printer)
		if err != nil {
			return err
		}
		if p.Paper != nil && p.Paper.RunOutAt != nil {
			d.mu.Lock()
			d.looks = append(d.looks, look{at: now, out: *p.Paper.RunOutAt, used: used})
			d.mu.Unlock()
		}
	}
}

func (d *day) leaveOpen(ctx context.Context, on bool) error {
	c := d.till.Counter()
	if !on {
		c.Printer.Set(emulator.DrawerOpen, false)
		return nil
	}
	if err := d.kick(ctx); err != nil {
		return err
	}
	if err := d.drawer(ctx, true); err != nil {
		return err
	}
	if err := wait(ctx, leftOpen); err != nil {
		return err
	}
	d.left.begun = time.Now() // from here on it is too long
	return nil
}

func (d *day) stick(ctx context.Context, on bool) error {
	c := d.till.Counter()
	c.Printer.Set(emulator.DrawerStuck, on)
	if err := d.kick(ctx); err != nil {
		return err
	}
	if on {
		return nil
	}
	if err := d.drawer(ctx, true); err != nil {
		return err
	}
	if err := wait(ctx, saleOpen); err != nil {
		return err
	}
	c.Printer.Set(emulator.DrawerOpen, false)
	return nil
}

// kick opens the drawer without a sale, by a job that holds nothing else.
func (d *day) kick(ctx context.Context) error {
	p, err := d.print(ctx, "\x1bp\x00\x19\xfa")
	if err == nil && !p.Printed {
		err = errors.New("the agent refused to open the drawer: " + p.Code)
	}
	return err
}

// cards lets customers pay by card all day.
func (d *day) cards(ctx context.Context) error {
	c := d.till.Counter()
	for i := range cardsADay {
		if err := d.at(ctx, 0.02+0.96*(float64(i)+0.5*d.random())/cardsADay); err != nil {
			return err
		}
		d.reader.Lock()
		c.Card.Insert()
		err := wait(ctx, cardStays)
		c.Card.Remove()
		err = errors.Join(err, wait(ctx, cardStays))
		d.reader.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

const (
	cardsADay = 12
	cardStays = 700 * time.Millisecond // pcscd looks every 400 ms
)

func (d *day) worn(_ context.Context, on bool) error {
	c := d.till.Counter()
	if on {
		c.Card.Mute(true)
		c.Card.Insert()
		return nil
	}
	c.Card.Remove()
	c.Card.Mute(false)
	return nil
}

func (d *day) torn(_ context.Context, on bool) error {
	c := d.till.Counter()
	if on {
		c.Card.TearNext()
		c.Card.Insert()
	}
	return nil
}

func (d *day) daemon(ctx context.Context, on bool) error {
	c := d.till.Counter()
	if on {
		c.Daemon.Halt()
		return nil
	}
	return c.Daemon.Restart(ctx)
}

func (d *day) scannerOff(_ context.Context, on bool) error {
	d.scanning.Lock()
	defer d.scanning.Unlock()
	d.unscannable = on
	return d.till.Counter().Scanner.Set(emulator.Unplugged, on)
}

// scan reads codes, as long as the scanner is there.
func (d *day) scan(codes int) error {
	d.scanning.Lock()
	defer d.scanning.Unlock()
	for range codes {
		if d.unscannable {
			return nil
		}
		if err := d.till.Counter().Scanner.Scan("4006381333931"); err != nil {
			return fmt.Errorf("scan: %w", err)
		}
		d.count(&d.scans)
	}
	return nil
}

// visit is one customer.
type visit struct {
	at           float64 // of the day
	lines, scans int
	cash         bool
}

// shop is who comes when: few in the morning, most at noon and after work.
var shop = emulator.Duty{
	PerHour:  []float64{18, 23, 25, 28, 32, 30, 23, 23, 25, 28, 27, 20},
	MinLines: 14, MaxLines: 34, Roll: 1 << 20, Left: 1 << 20, ByCash: 0.2, DrawerFor: time.Second,
}

// duty is the visits of the day.
func (d *day) duty() []visit {
	steps, truth := shop.Day(d.o.Seed)
	var out []visit
	for _, s := range steps {
		switch s.Act {
		case emulator.Sale:
			out = append(out, visit{at: 0.04 + 0.95*s.At.Seconds()/truth.Length.Seconds(), lines: s.Lines, scans: 1 + int(2*d.random())})
		case emulator.OpenDrawer:
			out[len(out)-1].cash = true
		default: // what else happens is on the list of faults
		}
	}
	return out
}

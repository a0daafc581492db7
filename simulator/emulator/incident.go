package emulator

// Incident is something wrong that has to be told, with the UnifiedPOS codes of
// the event when it comes and when it is over.
type Incident struct {
	Name       string // for reports
	Peripheral string // UnifiedPOS category of the device that tells
	On, Off    string // Off is empty for what comes and is over at once
	Sensor     string // that shows it; empty: it is told by the power, or by the event alone
	Asked      bool   // it shows when somebody opens the drawer through the driver, before and after
	Set        func(on bool) error
}

// Incidents are what can be wrong with the printer and the drawer behind it.
// LeftOpen is the drawer's opening too: it is told when the drawer stays open
// for as long as its driver allows.
func (p *Printer) Incidents() []Incident {
	set := func(f Fault) func(bool) error {
		return func(on bool) error {
			p.Set(f, on)
			return nil
		}
	}
	const printer, drawer = "POSPrinter", "CashDrawer"
	return []Incident{
		{Name: "printer cover open", Peripheral: printer, On: "COVER_OPEN", Off: "COVER_OK", Sensor: "CoverOpen", Set: set(CoverOpen)},
		{Name: "printer paper low", Peripheral: printer, On: "REC_NEAREMPTY", Off: "REC_PAPEROK", Sensor: "RecNearEnd", Set: set(NearEnd)},
		{Name: "printer paper out", Peripheral: printer, On: "REC_EMPTY", Off: "REC_PAPEROK", Sensor: "RecEmpty", Set: set(PaperEnd)},
		{Name: "printer cutter jammed", Peripheral: printer, On: "M_CUTTER_ERROR", Off: "M_CUTTER_OK", Sensor: "M_CutterError", Set: set(CutterJam)},
		{Name: "printer head too hot", Peripheral: printer, On: "M_HEAD_TOO_HOT", Off: "M_HEAD_OK", Sensor: "M_HeadTooHot", Set: set(HeadHot)},
		{Name: "printer mechanical error", Peripheral: printer, On: "M_MECHANICAL_ERROR", Off: "M_MECHANICAL_OK", Sensor: "M_MechanicalError", Set: set(Mechanical)},
		{Name: "printer unrecoverable error", Peripheral: printer, On: "M_UNRECOVERABLE_ERROR", Off: "M_RECOVERED", Sensor: "M_UnrecoverableError", Set: set(Unrecoverable)},
		{Name: "printer off-line", Peripheral: printer, On: "POWER_OFFLINE", Off: "POWER_ONLINE", Set: set(Offline)},
		{Name: "printer feed button held", Peripheral: printer, On: "POWER_OFFLINE", Off: "POWER_ONLINE", Set: set(FeedButton)},
		{Name: "printer unplugged", Peripheral: printer, On: "POWER_OFF_OFFLINE", Off: "POWER_ONLINE", Set: set(Unplugged)},
		{Name: "drawer opened unasked", Peripheral: drawer, On: "M_DRAWER_UNEXPECTED_OPEN", Off: "M_DRAWER_SECURE", Sensor: "M_UnexpectedOpen", Set: set(DrawerOpen)},
		{Name: "drawer left open", Peripheral: drawer, On: "M_DRAWER_LEFT_OPEN", Off: "M_DRAWER_SHUT", Sensor: "M_LeftOpen", Set: set(DrawerOpen)},
		{Name: "drawer stuck", Peripheral: drawer, On: "M_DRAWER_STUCK", Off: "M_DRAWER_FREE", Sensor: "M_DrawerStuck", Asked: true, Set: func(on bool) error {
			p.Set(DrawerOpen, false)
			p.Set(DrawerStuck, on)
			return nil
		}},
	}
}

// Incidents are what can be wrong with reader i, the card in it and the daemon
// before it.
func (p *VirtualPCSCD) Incidents(i int) []Incident {
	card := p.readers[i].Card
	put := func(in bool) {
		if in {
			card.Insert()
		} else {
			card.Remove()
		}
	}
	const reader = "SmartCardRW"
	return []Incident{
		{Name: "card mute", Peripheral: reader, On: "M_CARD_MUTE", Off: "M_CARD_OK", Sensor: "M_CardMute", Set: func(on bool) error {
			card.Mute(on)
			put(on)
			return nil
		}},
		{Name: "card torn", Peripheral: reader, On: "M_CARD_TORN", Set: func(on bool) error {
			if on {
				card.TearNext()
			}
			put(on)
			return nil
		}},
		{Name: "reader gone", Peripheral: reader, On: "POWER_OFF_OFFLINE", Off: "POWER_ONLINE", Set: func(on bool) error {
			p.Unplug(i, on)
			return nil
		}},
		{Name: "daemon restarted", Peripheral: reader, On: "M_PCSCD_GONE", Off: "M_PCSCD_BACK", Sensor: "M_DaemonGone", Set: func(on bool) error {
			if !on {
				return p.start()
			}
			p.Halt()
			return nil
		}},
	}
}

// Incidents are what can be wrong with a scanner.
func (s *Scanner) Incidents() []Incident {
	return []Incident{
		{Name: "scanner unplugged", Peripheral: "Scanner", On: "POWER_OFF_OFFLINE", Off: "POWER_ONLINE", Set: func(on bool) error { return s.Set(Unplugged, on) }},
	}
}

package hal

// Replay applies events, the oldest first, to a look at a device of that
// category, and returns it judged. From one look and all that was told since it
// gives the last one, but for what no event says: that a sensor became Unknown,
// and how near the end is of paper that is out.
func Replay(category Category, s Status, events ...Event) Status {
	s = clone(s)
	set := func(sensor string, is Tri) {
		if s.Sensors[sensor] != Unknown {
			s.Sensors[sensor] = is
		}
	}
	for _, e := range events {
		switch e.Code {
		case "POWER_ONLINE", "POWER_OFFLINE", "POWER_OFF", "POWER_OFF_OFFLINE":
			s.Power = Power("PS_" + e.Code[len("POWER_"):])
		case "REC_EMPTY":
			set("RecEmpty", Yes)
		case "REC_NEAREMPTY":
			set("RecEmpty", No)
			set("RecNearEnd", Yes)
		case "REC_PAPEROK":
			set("RecEmpty", No)
			set("RecNearEnd", No)
		default:
			for sensor, code := range sensorCodes {
				switch e.Code {
				case code[Yes-No]:
					s.Sensors[sensor] = Yes
				case code[0]:
					s.Sensors[sensor] = No
				}
			}
		}
	}
	return Judge(category, s.Power, s.Sensors)
}

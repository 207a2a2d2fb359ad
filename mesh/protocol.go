package mesh

// WellKnownProtocol is the protocol that a port number implies where nothing was declared, or ProtocolAuto.
// It lists the ports whose servers speak first or whose protocol is never HTTP, so that detection neither
// waits for a client that is itself waiting nor mistakes their bytes
// (https://istio.io/latest/docs/ops/configuration/traffic-management/protocol-selection/).
func WellKnownProtocol(port uint16) Protocol {
	switch port {
	case 21, 22, 25, 53, 110, 143, 465, 587, 993, 995, // ftp ssh smtp dns pop imap
		389, 636, 1433, 1521, // ldap mssql oracle
		2181, 3306, 33060, 4222, // zookeeper mysql nats
		5432, 5671, 5672, 6379, 6432, // postgres amqp redis pgbouncer
		9042, 9092, 9093, 9094, 11211, // cassandra kafka memcached
		1883, 8883, 26379, 27017, 27018, 27019: // mqtt sentinel mongo
		return ProtocolTCP
	}
	return ProtocolAuto
}

// ClientSpeaksFirst reports whether a port is one of HTTP or TLS by custom, though only detection can say which: its
// clients begin, so that one that says nothing need not be kept for long.
func ClientSpeaksFirst(port uint16) bool {
	switch port {
	case 80, 443, 8080, 8443:
		return true
	}
	return false
}

// Command tessera-wait does nothing until it is stopped. It runs in containers of images that are
// pre-pulled, so it needs no file of theirs.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
}

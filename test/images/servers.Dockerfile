# What TestServers runs: real servers and their own clients from Debian, on top of the other tests' image.
FROM composure-test/debian:1
RUN echo 'exit 101' > /usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d \
 && apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      mariadb-server mariadb-client rabbitmq-server python3-pika nats-server mosquitto mosquitto-clients \
      opensmtpd swaks openssh-server openssh-client nginx-light vsftpd \
 && rm -rf /var/lib/apt/lists/* /usr/sbin/policy-rc.d
